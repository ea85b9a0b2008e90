"""Batches of token sequences with few shapes: a pure function of (examples, seed, epoch), so two integers resume it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class SequenceBatch:
    """B sequences, right-aligned, so that all targets stand in the last R positions.

    tokens i32[B, L] and mask bool[B, L] (real tokens); targets bool[B, R]: is the token at L - R + r to be predicted?
    Where targets are few among the last R tokens, `picked` i32[B, K] are the r of all of them, filled up with others.
    """

    tokens: np.ndarray
    mask: np.ndarray
    targets: np.ndarray
    picked: np.ndarray | None = None

    @property
    def real_tokens(self) -> int:
        """Tokens that are not padding."""
        return int(self.mask.sum())

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """What a loss takes: tokens, mask, targets, and `picked` where there is one."""
        most = (self.tokens, self.mask, self.targets)
        return most if self.picked is None else (*most, self.picked)


@dataclass(frozen=True)
class Sequences:
    """Token sequences with the span that is predicted: `targets[i]` marks the tokens of `tokens[i]` that count."""

    tokens: tuple[tuple[int, ...], ...]
    targets: tuple[tuple[bool, ...], ...]

    def __len__(self) -> int:
        return len(self.tokens)


def bucket(
    sequences: Sequences, tokens_per_batch: int, step: int = 32, rows: int = 8
) -> dict[tuple[int, int], np.ndarray]:
    """Group sequences by (length, target span), both rounded up to a multiple of `step`.

    A group too small to fill one batch joins the next longer one with at least its target span, so that every shape
    pays for its compilation.

    Args:
        sequences: the data.
        tokens_per_batch, rows: size of a batch, as `batch_size` takes them.
        step: lengths are rounded up to a multiple of this.

    Returns:
        (L, R) -> indices.
    """
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, (tokens, targets) in enumerate(zip(sequences.tokens, sequences.targets, strict=True)):
        span = len(targets) - targets.index(True)
        length, span = (-(-size // step) * step for size in (len(tokens), span))
        groups[max(length, span + step), span].append(index)
    merged: dict[tuple[int, int], list[int]] = {}
    carried: list[int] = []
    span_needed = 0
    for key in sorted(groups):
        indices = carried + groups[key]
        key = (key[0], max(key[1], span_needed))
        if len(indices) < 2 * batch_size(key[0], tokens_per_batch, rows) and key[0] != max(groups)[0]:
            carried, span_needed = indices, key[1]
            continue
        carried, span_needed = [], 0
        merged.setdefault(key, []).extend(indices)
    return {key: np.array(sorted(indices)) for key, indices in merged.items()}


def batch_size(length: int, tokens_per_batch: int, rows: int = 8) -> int:
    """Sequences per batch at this length: a multiple of `rows` that holds about `tokens_per_batch` tokens."""
    return max(rows, tokens_per_batch // length // rows * rows)


def epoch_batches(
    sequences: Sequences,
    groups: dict[tuple[int, int], np.ndarray],
    tokens_per_batch: int,
    *,
    seed: int,
    epoch: int,
    pad_id: int,
    drop: float = 0.0,
    drop_id: int | None = None,
    start: int = 0,
    rows: int = 8,
) -> Iterator[SequenceBatch]:
    """All batches of an epoch in a random order that depends on (seed, epoch) alone.

    Args:
        sequences, groups: the data and its buckets.
        tokens_per_batch: size of a batch.
        seed, epoch: of the order.
        pad_id: padding token.
        drop: probability with which a context token is replaced by `drop_id` (regularisation; targets stay).
        drop_id: the token that stands for a dropped one.
        start: batches to leave out in front (on resume).
        rows: the size of a batch is a multiple of this.
    """
    random = np.random.default_rng([seed, epoch])
    plan: list[tuple[tuple[int, int], np.ndarray]] = []
    widths = {key: picked_width(sequences, groups[key], key[1]) for key in groups}
    for key in sorted(groups):
        size = batch_size(key[0], tokens_per_batch, rows)
        order = random.permutation(groups[key])
        # The last batch is filled up from the front of the order: no sequence is left out, no shape is new.
        order = np.resize(order, -(-len(order) // size) * size)
        plan += [(key, chosen) for chosen in order.reshape(-1, size)]
    for number in random.permutation(len(plan))[start:]:
        key, chosen = plan[number]
        noise = np.random.default_rng([seed, epoch, int(number)]) if drop else None
        batch = make_batch(sequences, chosen, key, pad_id, drop, drop_id, noise)
        yield batch if widths[key] == key[1] else replace(batch, picked=pick(batch.targets, widths[key]))


def picked_width(sequences: Sequences, rows: np.ndarray, span: int, step: int = 32) -> int:
    """K for sequences of one group: the most targets that one of them has, in multiples of `step`; R where that saves
    less than a quarter of the R positions."""
    most = max(sum(sequences.targets[row]) for row in rows)
    width = -(-most // step) * step
    return width if width <= 0.75 * span else span


def pick(targets: np.ndarray, width: int) -> np.ndarray:
    """i32[B, K]: the positions of the targets bool[B, R], in order, then others; K < R is at least their number."""
    return np.argsort(~targets, axis=1, kind="stable")[:, :width].astype(np.int32)


def batches_per_epoch(groups: dict[tuple[int, int], np.ndarray], tokens_per_batch: int, rows: int = 8) -> int:
    """Number of batches that `epoch_batches` yields."""
    return sum(-(-len(found) // batch_size(key[0], tokens_per_batch, rows)) for key, found in groups.items())


def make_batch(
    sequences: Sequences,
    rows: Sequence[int] | np.ndarray,
    shape: tuple[int, int],
    pad_id: int,
    drop: float = 0.0,
    drop_id: int | None = None,
    random: np.random.Generator | None = None,
) -> SequenceBatch:
    """One batch of the given (L, R), right-aligned."""
    length, span = shape
    tokens = np.full((len(rows), length), pad_id, np.int32)
    mask = np.zeros((len(rows), length), bool)
    targets = np.zeros((len(rows), length), bool)
    for row, index in enumerate(rows):
        size = len(sequences.tokens[index])
        tokens[row, length - size :] = sequences.tokens[index]
        mask[row, length - size :] = True
        targets[row, length - size :] = sequences.targets[index]
    if random is not None and drop_id is not None:
        dropped = (random.random(tokens.shape) < drop) & mask & ~targets
        tokens[dropped] = drop_id
    return SequenceBatch(tokens, mask, targets[:, length - span :])


def left_pad(prompts: Sequence[Sequence[int]], length: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts as i32[S, C] and their mask bool[S, C].

    Raises:
        ValueError: a prompt is longer than `length`.
    """
    tokens = np.full((len(prompts), length), pad_id, np.int32)
    mask = np.zeros((len(prompts), length), bool)
    for row, prompt in enumerate(prompts):
        if len(prompt) > length:
            raise ValueError(f"prompt {row} has {len(prompt)} tokens, the context holds {length}")
        if prompt:
            tokens[row, length - len(prompt) :] = prompt
            mask[row, length - len(prompt) :] = True
    return tokens, mask
