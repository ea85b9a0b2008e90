"""The registry of streams, the checks on what a stream returns, and the arrays made of it."""

from __future__ import annotations

import numpy as np
import pytest

from morejax.tasks import streams as streams_module
from morejax.tasks.multiwoz.records import Dialogue, Turn
from morejax.tasks.streams import (
    SampledBatch,
    SampledTurn,
    StreamContext,
    StreamValues,
    compute_streams,
    get_stream,
    register_stream,
    registered_streams,
    stack_streams,
)

LENGTHS = (2, 1, 3)


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    monkeypatch.setattr(streams_module, "_REGISTRY", {})


@pytest.fixture
def batch():
    turns = tuple(Turn(t, "hello", "hi", "hi", {}, (), (), ()) for t in range(3))
    dialogue = Dialogue("one", "train", turns, {})
    sampled = [SampledTurn(dialogue, turn, "hi", (5,) * n, {}) for turn, n in zip(turns, LENGTHS, strict=True)]
    return SampledBatch((tuple(sampled[:2]), tuple(sampled[2:])))


def register(name, make, kind="objective"):
    @register_stream(name, kind=kind)
    def stream(batch, context):
        """A stream of a test."""
        return make(batch, context)

    return stream


def brevity(batch, context):
    return StreamValues([1.0 / len(turn.tokens) for turn in batch.turns])


def test_a_users_stream_is_registered_and_computed(batch):
    register("brevity", brevity)
    register("bound", lambda b, c: StreamValues(np.full(3, c.extra["limit"])), "constraint")
    assert registered_streams() == ("brevity", "bound")
    assert registered_streams("constraint") == ("bound",)
    assert get_stream("brevity").description == "A stream of a test."
    values = compute_streams(["bound", "brevity"], batch, StreamContext(extra={"limit": 0.5}), 4)
    assert list(values) == ["bound", "brevity"]
    np.testing.assert_allclose(values["brevity"].reward, [1 / 2, 1, 1 / 3])
    assert values["bound"].mean == 0.5


def test_defaults_and_mean():
    values = StreamValues([1, 2], token_reward=[[0, 1], [0.5, 0]])
    np.testing.assert_array_equal(values.score, [2, 2.5])
    assert values.applies.all()
    assert values.mean == pytest.approx(2.25)
    weighted = StreamValues([0, 0, 0], [True, True, False], [1, 0, 1], [3, 1, 5])
    assert weighted.mean == 0.75
    assert StreamValues([1.0], [False]).mean == 0.0


def test_stacking_puts_rewards_on_the_last_token_and_dense_ones_on_theirs():
    first = StreamValues([1, 2, 3], [True, False, True], [9, 8, 7], [1, 1, 0.5])
    dense = StreamValues([0, 0, 1], token_reward=[[0.5, 0, 0], [0.25, 0, 0], [0, 0.5, 0.125]])
    stacked = stack_streams({"a": first, "b": dense}, LENGTHS, 4)
    assert stacked.names == ("a", "b")
    assert stacked.rewards.dtype == np.float32
    np.testing.assert_array_equal(stacked.rewards[..., 0], [[0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 3, 0]])
    np.testing.assert_array_equal(stacked.rewards[..., 1], [[0.5, 0, 0, 0], [0.25, 0, 0, 0], [0, 0.5, 1.125, 0]])
    np.testing.assert_array_equal(stacked.applies, [[True, True], [False, True], [True, True]])
    np.testing.assert_array_equal(stacked.scores[:, 0], [9, 8, 7])
    np.testing.assert_array_equal(stacked.weights[:, 0], [1, 1, 0.5])
    np.testing.assert_allclose(stacked.rewards.sum((1, 2)), [1.5, 0.25, 4.625])


def test_unknown_names_and_taken_names_are_errors(batch):
    register("brevity", brevity)
    with pytest.raises(ValueError, match="unknown stream 'brevety', registered: brevity"):
        compute_streams(["brevety"], batch, StreamContext(), 4)
    with pytest.raises(ValueError, match="'brevity' is already registered"):
        register_stream("brevity", kind="objective")(brevity)
    with pytest.raises(ValueError, match="kind is 'goal', expected 'constraint' or 'objective'"):
        register_stream("new", kind="goal")
    register("brevity", brevity)  # a reloaded module may register the same function again


def test_no_stream_at_all_is_an_error(batch):
    with pytest.raises(ValueError, match="import the task's rewards module"):
        compute_streams(["inform"], batch, StreamContext(), 4)
    with pytest.raises(ValueError, match="no streams to stack"):
        stack_streams({}, LENGTHS, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda b, c: np.zeros(3), "'bad' returned ndarray, expected StreamValues"),
        (lambda b, c: StreamValues(np.zeros(2)), r"reward has shape \(2,\), expected \(3,\)"),
        (lambda b, c: StreamValues(np.zeros(3), [True]), r"applies has shape \(1,\), expected \(3,\)"),
        (lambda b, c: StreamValues([0, np.inf, 0]), "reward is inf for dialogue one, turn 1"),
        (lambda b, c: StreamValues(np.zeros(3), score=[0, 0, np.nan]), "score is nan for dialogue one, turn 2"),
        (lambda b, c: StreamValues(np.zeros(3), weight=[1, -1, 1]), "weight has negative values"),
        (
            lambda b, c: StreamValues(np.zeros(3), token_reward=np.zeros((3, 4))),
            r"shape \(3, 4\), expected \(3, at most 3\)",
        ),
    ],
)
def test_what_a_stream_returns_is_checked(batch, make, message):
    register("bad", make)
    with pytest.raises(ValueError, match=message):
        compute_streams(["bad"], batch, StreamContext(), 4)


def test_batches_are_checked(batch):
    register("brevity", brevity)
    with pytest.raises(ValueError, match="a sampled reply has 3 tokens, max_reply is 2"):
        compute_streams(["brevity"], batch, StreamContext(), 2)
    with pytest.raises(ValueError, match=r"SampledBatch.natural has shape \(2,\), expected \(3,\)"):
        SampledBatch(batch.dialogues, natural=np.zeros(2))
    turn = batch.turns[0]
    empty = SampledTurn(turn.dialogue, turn.turn, "", (), {})
    with pytest.raises(ValueError, match="dialogue one, turn 0 has no tokens"):
        SampledBatch(((empty,),))
