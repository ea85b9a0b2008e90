"""Rewards that run on the device, inside the program that samples and trains, each beside its host form.

| reward               | device form              | host form                                          |
|----------------------|--------------------------|----------------------------------------------------|
| n-gram overlap       | `overlap`                | `overlap_on_host`                                  |
| placeholders         | `licensed_share`         | stream `faithfulness` of `morejax.tasks.multiwoz`  |
| due slots            | `slot_recall`            | stream `slots`                                     |
| likelihood           | `clipped_likelihood`     | stream `fluency`                                   |
| reward head          | `reward_heads.judge`     | stream `naturalness`                               |

What depends on the prompt alone (which placeholders the database licenses, which slots are due) is worked out on the
host before and travels with the prompts; what depends on the sampled tokens is computed here.
`morejax.tasks.multiwoz.on_device` makes a reward function of them.

Shape letters: S sequences, T response positions, R reference positions, P placeholders, V vocabulary.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

MAX_ORDER = 4


def on_last_token(reward: jax.Array, mask: jax.Array) -> jax.Array:
    """Rewards of sequences f32[S, ...] at their last valid token, f32[S, T, ...], 0 elsewhere.

    Args:
      reward: f32[S, ...].
      mask: bool[S, T], True on a prefix of every row.
    """
    last = mask & (jnp.cumsum(mask, axis=1) == mask.sum(1, keepdims=True))
    last = last.reshape(last.shape + (1,) * (reward.ndim - 1))
    return jnp.where(last, jnp.expand_dims(reward, 1), 0.0)


# N-gram overlap


def overlap(tokens: jax.Array, mask: jax.Array, reference: jax.Array, reference_mask: jax.Array) -> jax.Array:
    """Sentence BLEU-4 on token ids, with sacrebleu's exponential smoothing and effective order, in [0, 1].

        BLEU = min(1, e^(1 - r/c)) exp(mean_n log p_n),    p_n = matches_n / total_n

    over orders n <= min(4, c), c and r the lengths of reply and reference. The j-th order without a match counts 2^-j
    matches; a reply without any match at all scores 0. Matches are clipped: an n-gram counts at most as often as the
    reference has it.

    Args:
      tokens, mask: i32[S, T], bool[S, T]: replies, valid on a prefix.
      reference, reference_mask: i32[S, R], bool[S, R]: references, valid on a prefix.

    Returns:
      f32[S].

    Source: Papineni et al. 2002; Post, arXiv 1804.08771 (`sentence_bleu`).
    """
    length, other = mask.sum(-1), reference_mask.sum(-1)
    orders = range(1, MAX_ORDER + 1)
    matches = jnp.stack(_clipped_matches(tokens, mask, reference, reference_mask), axis=-1)
    total = jnp.stack([jnp.maximum(length - n + 1, 0) for n in orders], axis=-1)
    used = total > 0
    # The j-th empty order, counted over the used ones.
    smoothed = 0.5 ** jnp.cumsum(used & (matches == 0), axis=-1).astype(jnp.float32)
    counted = jnp.where(matches > 0, matches.astype(jnp.float32), smoothed)
    log_precision = jnp.where(used, jnp.log(counted / jnp.maximum(total, 1)), 0.0)
    mean = log_precision.sum(-1) / jnp.maximum(used.sum(-1), 1)
    brevity = jnp.minimum(0.0, 1.0 - other / jnp.maximum(length, 1))
    return jnp.where((matches > 0).any(-1), jnp.exp(brevity + mean), 0.0)


def _clipped_matches(
    tokens: jax.Array, mask: jax.Array, reference: jax.Array, reference_mask: jax.Array
) -> list[jax.Array]:
    """For n = 1..4 the n-grams of each reply that its reference has, at most as often as there: i32[S] each."""
    first = _equal(tokens, mask, reference, reference_mask)
    own_first = _equal(tokens, mask, tokens, mask)
    earlier = jnp.tril(jnp.ones(own_first.shape[1:], bool), -1)[None]
    same, own, found = first, own_first, []
    for order in range(MAX_ORDER):
        if order:
            same, own = same & _shift(first, order), own & _shift(own_first, order)
        # Of equal n-grams in the reply the first r match, r being their number in the reference.
        before = (own & earlier).sum(-1)
        found.append((before < same.sum(-1)).sum(-1))
    return found


def _equal(left: jax.Array, left_mask: jax.Array, right: jax.Array, right_mask: jax.Array) -> jax.Array:
    """bool[S, L, R]: is valid token i of the left that of j of the right?"""
    valid = left_mask[:, :, None] & right_mask[:, None, :]
    return (left[:, :, None] == right[:, None, :]) & valid


def _shift(pairs: jax.Array, by: int) -> jax.Array:
    """Entry (i + by, j + by) at (i, j); False past the end, also where a row is shorter than `by`."""
    moved = pairs[:, by:, by:]
    room = [(0, 0), *((0, size - kept) for size, kept in zip(pairs.shape[1:], moved.shape[1:], strict=True))]
    return jnp.pad(moved, room)


def overlap_on_host(reply: Sequence[int], reference: Sequence[int]) -> float:
    """The same number for one reply, by counting n-grams; see `overlap`."""
    matches, total = [], []
    for n in range(1, MAX_ORDER + 1):
        said, wanted = (
            Counter(tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)) for ids in (list(reply), list(reference))
        )
        matches.append((said & wanted).total())
        total.append(said.total())
    if not any(matches):
        return 0.0
    smoothing, logs = 1.0, []
    for matched, count in zip(matches, total, strict=True):
        if not count:
            break
        if not matched:
            smoothing /= 2.0
        logs.append(math.log((matched or smoothing) / count))
    brevity = min(0.0, 1.0 - len(reference) / len(reply))
    return math.exp(brevity + sum(logs) / len(logs))


# Placeholders


def placeholder_table(placeholders: Mapping[int, str], names: Sequence[str], vocab_size: int) -> np.ndarray:
    """Column of every token in a mask over `names`: i32[V], -1 for a token that is no placeholder.

    Args:
      placeholders: token id -> unified name, as `StreamContext.placeholders` has it.
      names: the P names that have a column; a placeholder of another name gets column P: said, but never licensed.
      vocab_size: V.
    """
    table = np.full((vocab_size,), -1, np.int32)
    columns = {name: column for column, name in enumerate(names)}
    for token, name in placeholders.items():
        table[token] = columns.get(name, len(names))
    return table


def _columns(tokens: jax.Array, mask: jax.Array, table: jax.Array, names: int) -> jax.Array:
    """One-hot bool[S, T, P] of the placeholder at each position."""
    column = jnp.where(mask, table[tokens], -1)
    return column[..., None] == jnp.arange(names)[None, None, :]


def licensed_share(tokens: jax.Array, mask: jax.Array, table: jax.Array, licensed: jax.Array) -> jax.Array:
    """Share of a reply's placeholders, each occurrence counted, that its turn licenses; 1 for a reply without any.

    Args:
      tokens, mask: i32[S, T], bool[S, T].
      table: i32[V], see `placeholder_table`.
      licensed: bool[S, P].

    Returns:
      f32[S].
    """
    said = (mask & (table[tokens] >= 0)).sum(-1)
    right = (_columns(tokens, mask, table, licensed.shape[1]) & licensed[:, None, :]).sum((1, 2))
    return jnp.where(said > 0, right / jnp.maximum(said, 1), 1.0)


def slot_recall(tokens: jax.Array, mask: jax.Array, table: jax.Array, due: jax.Array) -> jax.Array:
    """1/N at the first token of each of the N placeholders that are due in this turn.

    Args:
      tokens, mask: i32[S, T], bool[S, T].
      table: i32[V], see `placeholder_table`.
      due: bool[S, P]; a turn with nothing due gets 0 (and the stream does not apply to it).

    Returns:
      f32[S, T], dense.
    """
    said = _columns(tokens, mask, table, due.shape[1]) & due[:, None, :]
    first = said & (jnp.cumsum(said, axis=1) == 1)
    return first.any(-1) / jnp.maximum(due.sum(-1, keepdims=True), 1)


# Learned rewards


def clipped_likelihood(logp: jax.Array, low: float | jax.Array, high: float | jax.Array) -> jax.Array:
    """Mean token log-probability clipped to a range and scaled to [0, 1]: (clip(logp, low, high) - low) / (high - low).

    Args:
      logp: f32[S], mean log-probability a token under a frozen model, nats (`reward_heads.judge`).
      low, high: the range, of corpus replies; low < high.

    Returns:
      f32[S]; a NaN stays one.
    """
    return (jnp.clip(logp, low, high) - low) / (high - low)
