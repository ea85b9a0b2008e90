"""Rollouts of a toy task: which dialogues, what stands in a row, turn by turn, on a mesh."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from morejax.models.split import merge, whole
from morejax.rollout import Sample, token_logp
from morejax.sharding import make_mesh
from morejax.training import assess, turn_by_turn
from morejax.training.placement import ONE_DEVICE, Placement
from morejax.training.rollouts import Sampler, Shapes, build_rollout, plan, positions, static_shapes

sys.path.append(str(Path(__file__).parent))  # pytest's importlib mode puts no test directory on the path
from toy_ppo import LOOP, SHAPES, STEP, Prompt, Task, build_models, dialogues, fresh_state

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def models(core):
    return build_models(core)


# Which dialogues


def test_a_plan_takes_every_dialogue_once_an_epoch():
    sizes = np.random.default_rng(0).integers(1, 9, 50)
    batches = plan(sizes, 16, seed=0)
    numbers = []
    while len(numbers) < 150:
        batch = next(batches)
        assert 0 < sum(sizes[number] for number in batch) <= 16
        numbers += batch
    for epoch in range(3):
        assert sorted(numbers[50 * epoch : 50 * epoch + 50]) == list(range(50))
    assert numbers[:50] != numbers[50:100]


def test_a_plan_is_filled_as_far_as_whole_dialogues_go():
    sizes = [5, 5, 5, 5]
    assert [len(batch) for batch in islice(plan(sizes, 12, seed=3), 4)] == [2, 2, 2, 2]


def test_a_plan_resumes_by_skipping():
    sizes = [3, 1, 4, 1, 5, 9, 2, 6]
    whole = list(islice(plan(sizes, 10, seed=1), 12))
    assert list(islice(plan(sizes, 10, seed=1), 7, 12)) == whole[7:]
    assert list(islice(plan(sizes, 10, seed=2), 12)) != whole


def test_a_dialogue_too_long_for_a_rollout_is_refused():
    with pytest.raises(
        ValueError, match=r"--ppo.turns 8 does not hold the longest dialogue \(9 turns, --ppo.samples counted\)"
    ):
        next(plan([3, 9], 8, seed=0))


def test_positions_group_the_samples_of_a_turn():
    """Dialogue a (2 turns) sampled twice, b (1 turn) once, and one empty row."""
    a, b = SimpleNamespace(id="a"), SimpleNamespace(id="b")
    order = [(a, 0), (a, 1), (a, 0), (a, 1), (b, 0)]
    found = positions([SimpleNamespace(dialogue=one, turn=turn) for one, turn in order], 6)
    assert found["group"].tolist() == [0, 1, 0, 1, 4, 5]
    assert found["turn"].tolist() == [0, 1, 0, 1, 0, 0]
    dialogue = found["dialogue"].tolist()
    assert dialogue[0] == dialogue[1] != dialogue[2] == dialogue[3]
    assert len(set(dialogue)) == 4


def test_shapes_are_the_smallest_multiples_of_16_that_hold_all():
    prompts = [[Prompt((1,) * 17, (1,) * 32)], [Prompt((1,) * 3, (1,) * 33)]]
    assert static_shapes(prompts, 64, 24) == Shapes(64, 32, 48, 24)


# One rollout


def test_rows_beyond_the_prompts_are_empty():
    shapes = Shapes(turns=4, context=2, reasoned=2, reply=3)
    rng = np.random.default_rng(0)
    drawn = np.array([[7, 1, 0], [40, 50, 60], [8, 8, 1], [9, 9, 9]])
    sample = Sample(drawn, np.array([[1, 1, 0], [1, 1, 1], [1, 1, 1], [1, 1, 1]], bool), rng.normal(size=(4, 3)), None)
    context = np.array([[0, 5]] * 4)
    assessed = {
        "values": rng.normal(size=(4, 3, 2)),
        "logp_ref": rng.normal(size=(4, 3)),
        "ref_logps": rng.normal(size=(4, 3, 64)),
        "lm_logp": np.zeros(4),
        "natural": np.zeros(4),
    }
    tokens = np.concatenate([context, drawn], 1)
    rollout, count = build_rollout(
        Task(), dialogues()[0][:2], sample, tokens, tokens > 0, context > 0, assessed, STEP, shapes
    )
    assert count == 5
    assert rollout.resp_mask.astype(int).tolist() == [[1, 1, 0], [1, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert rollout.objectives.shape == rollout.constraints.shape == (4, 3, 1)
    # 7 and 1 are low; the second reply is not. Rewards stand at the last token.
    assert rollout.objectives[..., 0].tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert rollout.applies.tolist() == [[True, True]] * 2 + [[False, False]] * 2
    assert rollout.scores.tolist() == [[1, 0], [0, 0], [0, 0], [0, 0]]
    assert rollout.score_weights.tolist() == [[1, 1]] * 2 + [[0, 0]] * 2
    assert rollout.tokens.shape == (4, 5)
    assert rollout.ref_logps.shape == (4, 3, 64)


@pytest.mark.parametrize("ref_context", ["reasoned", "direct"])
def test_the_reference_reads_its_own_context(models, ref_context):
    _, params, frozen = models
    loop = replace(LOOP, ref_context=ref_context)
    sampler = Sampler(Task(), fresh_state(models), frozen, STEP, SHAPES, loop)
    prompts = dialogues()[0]
    rollout, count = sampler(params, prompts, jax.random.key(0))
    assert rollout.tokens.shape == (8, 7)
    assert count == rollout.resp_mask.sum()
    assert not rollout.resp_mask[len(prompts) :].any()
    # By hand: the first reply after the prompt that the reference is to read.
    reply = tuple(rollout.tokens[0, 4:][rollout.resp_mask[0]].tolist())
    prompt = getattr(prompts[0], ref_context)
    tokens = np.array([prompt + reply])

    @jax.jit
    def log_probabilities(reference, tokens):
        model = merge(frozen.graphdef, reference)
        return jax.nn.log_softmax(model.logits(model.hidden(tokens, tokens > 0)))

    logps = log_probabilities(frozen.reference, tokens)
    expected = token_logp(logps[0, len(prompt) - 1 : -1], np.array(reply))
    np.testing.assert_allclose(rollout.logp_ref[0][: len(reply)], expected, rtol=2e-4)
    np.testing.assert_allclose(
        token_logp(rollout.ref_logps, rollout.tokens[:, 4:])[rollout.resp_mask],
        rollout.logp_ref[rollout.resp_mask],
        rtol=1e-5,
    )


class Aloud(Task):
    """The last token is said, after another prompt; what is heard of language is kept."""

    aloud = True

    def spoken(self, prompt, written):
        return (9, *prompt.direct), written[-1:]

    def sampled(self, prompts, replies, lm_logp, natural):
        self.lm_logp = lm_logp
        return super().sampled(prompts, replies, lm_logp, natural)


def test_aloud_the_reference_reads_all_that_is_written_and_judges_what_is_said(models):
    _, params, frozen = models
    task, prompts = Aloud(), dialogues()[0]
    sampler = Sampler(task, fresh_state(models), frozen, STEP, SHAPES, replace(LOOP, ref_context="reasoned"))
    rollout, _ = sampler(params, prompts, jax.random.key(0))

    @jax.jit
    def log_probabilities(params, tokens):
        model = merge(frozen.graphdef, params)
        return jax.nn.log_softmax(model.logits(model.hidden(tokens, jnp.ones_like(tokens, bool))))

    for row, prompt in enumerate(prompts):
        written = tuple(rollout.tokens[row, 4:][rollout.resp_mask[row]].tolist())
        logps = log_probabilities(frozen.reference, np.array([prompt.direct + written]))
        expected = token_logp(logps[0, len(prompt.direct) - 1 : -1], np.array(written))
        np.testing.assert_allclose(rollout.logp_ref[row][: len(written)], expected, rtol=2e-4)
        logps = log_probabilities(frozen.language_model, np.array([(9, *prompt.direct)]))
        np.testing.assert_allclose(task.lm_logp[row], logps[0, -1, written[-1]], rtol=2e-4)


# Turn by turn


class TurnByTurn(Task):
    """The prompt of a turn begins with the first token of the reply before it."""

    turn_by_turn = True

    def prompts_after(self, prompts, said):
        old = prompts[len(said)]
        return replace(old, direct=(*(ids[0] for ids in said[-1:]), *old.direct)) if said else old


def test_turn_by_turn_each_reply_is_drawn_from_what_its_row_shows(models):
    """Whatever the blocks: the probabilities of a row are those of its tokens after its context."""
    graphdef, params, frozen = models
    prompts = [*dialogues()[0], *dialogues()[1]]
    sampler = Sampler(TurnByTurn(), fresh_state(models), frozen, STEP, SHAPES, LOOP)
    rollout, count = sampler(params, prompts, jax.random.key(3))
    assert count == rollout.resp_mask.sum()
    assert not rollout.resp_mask[len(prompts) :].any()

    @jax.jit
    def log_probabilities(params, tokens, mask):
        model = merge(graphdef, params)
        return jax.nn.log_softmax(model.logits(model.hidden(tokens, mask)))

    logps = log_probabilities(params, rollout.tokens, rollout.mask)[:, 3:-1]
    expected = token_logp(logps, rollout.tokens[:, 4:])
    np.testing.assert_allclose(rollout.logp_old[rollout.resp_mask], expected[rollout.resp_mask], rtol=2e-4, atol=1e-6)
    for row, prompt in enumerate(prompts):
        context = rollout.tokens[row, :4][rollout.context_mask[row]].tolist()
        before = [int(rollout.tokens[row - 1, 4])] if prompt.turn else []
        assert context == before + list(prompt.direct)


@pytest.mark.parametrize("shards", [2, 3])
def test_turn_by_turn_a_mesh_draws_what_one_device_draws(models, shards):
    """Also where blocks have to be filled up to be cut."""
    *_, frozen = models
    prompts, shapes = [*dialogues()[0], *dialogues()[1]], replace(SHAPES, turns=12)
    drawn = []
    for placement in (ONE_DEVICE, Placement(make_mesh(data=shards, devices=jax.devices()[:shards]))):
        state = placement.state(fresh_state(models))
        sampler = Sampler(TurnByTurn(), state, frozen, STEP, shapes, LOOP, placement)
        rollout, _ = sampler(whole(state.graphdef, state.params), prompts, jax.random.key(3))
        drawn.append(jax.tree.map(np.asarray, rollout))
    np.testing.assert_array_equal(drawn[0].tokens, drawn[1].tokens)
    np.testing.assert_array_equal(drawn[0].objectives, drawn[1].objectives)
    mask = drawn[0].resp_mask
    for name in ("logp_old", "values_old", "logp_ref"):
        left, right = (getattr(one, name)[mask] for one in drawn)
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)


# Groups of like length


def test_rows_are_grouped_by_length(monkeypatch):
    monkeypatch.setattr(assess, "GROUP", 2)
    monkeypatch.setattr(assess, "STEP", 4)
    groups = assess.by_length(np.array([5, 1, 8, 4]))
    assert [(rows.tolist(), length) for rows, length in groups] == [([1, 3], 4), ([0, 2], 8)]
    # What does not fill such groups, or is one, stays together.
    ((rows, length),) = assess.by_length(np.array([5, 1, 8]))
    assert (rows.tolist(), length) == ([0, 1, 2], 8)
    assert len(assess.by_length(np.array([5, 1]))) == 1


@pytest.mark.parametrize("task", [Task, TurnByTurn])
def test_what_is_said_of_a_row_does_not_depend_on_its_group(models, task, monkeypatch):
    *_, frozen = models
    params = models[1]
    prompts = [*dialogues()[0], *dialogues()[1], *dialogues()[2]][:8]
    found = []
    for group, step in ((64, 64), (2, 2)):
        monkeypatch.setattr(assess, "GROUP", group)
        monkeypatch.setattr(assess, "STEP", step)
        monkeypatch.setattr(turn_by_turn, "STEP", step)
        sampler = Sampler(task(), fresh_state(models), frozen, STEP, SHAPES, LOOP)
        rollout, _ = sampler(params, prompts, jax.random.key(3))
        found.append(jax.tree.map(np.asarray, rollout))
    whole, parts = found
    np.testing.assert_array_equal(whole.tokens, parts.tokens)
    np.testing.assert_array_equal(whole.objectives, parts.objectives)
    for name in ("values_old", "logp_ref", "logp_old", "ref_logps"):
        one, other = (getattr(rollout, name)[whole.resp_mask] for rollout in found)
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
