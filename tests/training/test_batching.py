"""Batches: nothing is lost, targets stand at the end, and (seed, epoch, start) say it all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from morejax.training.batching import (
    Sequences,
    batch_size,
    batches_per_epoch,
    bucket,
    epoch_batches,
    left_pad,
    make_batch,
    pick,
    picked_width,
)

PAD, DROPPED = 0, 1


def sequences(lengths, spans):
    """Sequence i holds the token 10 + i, its last `spans[i]` tokens are targets."""
    tokens = tuple((10 + i,) * length for i, length in enumerate(lengths))
    targets = tuple((False,) * (n - span) + (True,) * span for n, span in zip(lengths, spans, strict=True))
    return Sequences(tokens, targets)


@pytest.fixture(scope="module")
def mixed():
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 150, 200)
    return sequences(lengths.tolist(), [int(rng.integers(1, n)) for n in lengths])


def batches(data, *, tokens=512, **settings):
    settings = {"seed": 0, "epoch": 0, "pad_id": PAD} | settings
    return list(epoch_batches(data, bucket(data, tokens), tokens, **settings))


def equal(left, right):
    pairs = zip(left, right, strict=True)
    return all((a.tokens == b.tokens).all() and (a.targets == b.targets).all() for a, b in pairs if a.tokens.shape)


def test_one_batch_by_hand():
    data = sequences([3, 5], [1, 2])
    batch = make_batch(data, [0, 1], (6, 3), PAD)
    assert batch.tokens.tolist() == [[0, 0, 0, 10, 10, 10], [0, 11, 11, 11, 11, 11]]
    assert batch.mask.tolist() == [[False] * 3 + [True] * 3, [False] + [True] * 5]
    assert batch.targets.tolist() == [[False, False, True], [False, True, True]]
    assert batch.real_tokens == 8


def scattered(count, length, every):
    """Sequences in which every so-many-th token from the 10th on is a target."""
    marks = tuple(i >= 10 and (i - 10) % every == 0 for i in range(length))
    return Sequences(tuple((10 + i,) * length for i in range(count)), (marks,) * count)


def test_the_head_runs_where_the_targets_are():
    targets = np.array([[True, False, False, True], [False, False, True, False]])
    assert pick(targets, 2).tolist() == [[0, 3], [2, 0]]
    rows = np.arange(3)
    # 30 of 118 positions are targets: 32 are enough. 59 take 64, more than half, and 118 take all.
    assert picked_width(scattered(3, 128, 4), rows, 118) == 32
    assert picked_width(scattered(3, 128, 2), rows, 118) == 64
    assert picked_width(scattered(3, 128, 1), rows, 118) == 118
    few = batches(scattered(16, 128, 4))
    assert {batch.picked.shape for batch in few} == {(8, 32)}
    for batch in few:
        held = np.take_along_axis(batch.targets, batch.picked, axis=1)
        assert held.sum() == batch.targets.sum() == 8 * 30
        assert [len(batch.arrays), batch.arrays[-1] is batch.picked] == [4, True]
    assert all(batch.picked is None and len(batch.arrays) == 3 for batch in batches(scattered(16, 128, 1)))


def test_an_epoch_holds_every_sequence(mixed):
    made = batches(mixed)
    seen = {int(row[-1]) - 10 for batch in made for row in batch.tokens}
    assert seen == set(range(len(mixed)))


def test_every_row_is_its_whole_sequence_with_its_targets(mixed):
    for batch in batches(mixed):
        for tokens, mask, targets in zip(batch.tokens, batch.mask, batch.targets, strict=True):
            index = int(tokens[-1]) - 10
            length = len(mixed.tokens[index])
            assert mask.sum() == length
            assert mask[-length:].all()
            assert (tokens[-length:] == mixed.tokens[index]).all()
            assert (tokens[:-length] == PAD).all()
            assert targets.sum() == sum(mixed.targets[index])
            assert targets[-int(targets.sum()) :].all()


def test_a_target_always_has_a_token_before_it(mixed):
    for batch in batches(mixed):
        assert batch.targets.shape[1] < batch.tokens.shape[1]


def test_shapes_are_few_and_multiples_of_32(mixed):
    groups = bucket(mixed, 512)
    assert len(groups) <= 25
    assert all(length % 32 == 0 and span % 32 == 0 for length, span in groups)
    assert sorted(np.concatenate(list(groups.values()))) == list(range(len(mixed)))


def test_small_groups_join_longer_ones():
    # One short sequence with a long target span, many long ones with short spans.
    data = sequences([60] + [120] * 40, [50] + [10] * 40)
    groups = bucket(data, 1024)
    assert list(groups) == [(128, 64)]
    assert groups[128, 64].tolist() == list(range(41))


def test_batch_size_counts_tokens_in_steps_of_8():
    assert batch_size(32, 1024) == 32
    assert batch_size(96, 1024) == 8
    assert batch_size(500, 1024) == 8
    assert batch_size(64, 4096 + 64 * 7) == 64


def test_counted_batches_are_the_yielded_ones(mixed):
    assert batches_per_epoch(bucket(mixed, 512), 512) == len(batches(mixed))


def test_same_seed_and_epoch_same_batches(mixed):
    assert equal(batches(mixed, seed=3, epoch=2), batches(mixed, seed=3, epoch=2))


@pytest.mark.parametrize("other", [{"seed": 1}, {"epoch": 1}])
def test_another_seed_or_epoch_another_order(mixed, other):
    pairs = zip(batches(mixed), batches(mixed, **other), strict=True)
    assert any(a.tokens.shape != b.tokens.shape or (a.tokens != b.tokens).any() for a, b in pairs)


@given(start=st.integers(0, 30), drop=st.sampled_from([0.0, 0.3]))
def test_starting_late_continues_the_same_epoch(start, drop):
    data = sequences([10 + 3 * i for i in range(40)], [4] * 40)
    settings = {"drop": drop, "drop_id": DROPPED, "seed": 7, "epoch": 1, "tokens": 256}
    whole = batches(data, **settings)
    assert equal(whole[start:], batches(data, start=start, **settings))


def test_dropout_never_touches_targets_or_padding(mixed):
    plain, noisy = batches(mixed), batches(mixed, drop=0.5, drop_id=DROPPED)
    dropped = context = 0
    for before, after in zip(plain, noisy, strict=True):
        changed = before.tokens != after.tokens
        assert (after.tokens[changed] == DROPPED).all()
        assert not changed[~before.mask].any()
        assert not changed[:, -before.targets.shape[1] :][before.targets].any()
        dropped += changed.sum()
        context += before.mask.sum() - before.targets.sum()
    assert dropped / context == pytest.approx(0.5, abs=0.05)


def test_dropout_differs_between_epochs(mixed):
    data = Sequences(mixed.tokens[:8], mixed.targets[:8])
    first, second = (batches(data, drop=0.5, drop_id=DROPPED, epoch=epoch, tokens=8)[0] for epoch in (0, 1))
    kept = [sorted((row == DROPPED).sum() for row in batch.tokens) for batch in (first, second)]
    assert kept[0] != kept[1]


def test_left_pad_by_hand():
    tokens, mask = left_pad([(5, 6), (), (7,)], 3, PAD)
    assert tokens.tolist() == [[0, 5, 6], [0, 0, 0], [0, 0, 7]]
    assert mask.tolist() == [[False, True, True], [False] * 3, [False, False, True]]


def test_left_pad_refuses_a_long_prompt():
    with pytest.raises(ValueError, match=r"prompt 1 has 4 tokens, the context holds 3"):
        left_pad([(1,), (1, 2, 3, 4)], 3, PAD)


def test_batches_are_multiples_of_the_rows_asked_for(mixed):
    """More than 8 parts to cut rows into: larger batches, and still every sequence in an epoch."""
    assert batch_size(32, 1024, 24) == 24
    assert batch_size(500, 1024, 24) == 24
    groups = bucket(mixed, 512, rows=24)
    batches = list(epoch_batches(mixed, groups, 512, seed=0, epoch=0, pad_id=0, rows=24))
    assert {len(batch.tokens) % 24 for batch in batches} == {0}
    assert len(batches) == batches_per_epoch(groups, 512, 24)
    found = {tuple(row[mask].tolist()) for batch in batches for row, mask in zip(batch.tokens, batch.mask, strict=True)}
    assert found == set(mixed.tokens)
