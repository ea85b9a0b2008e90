"""What one minibatch is made of, and how it is cut into slices."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from morejax.reweight import WeightStats


class Batch(NamedTuple):
    """What one minibatch needs; leading axis: sequences."""

    tokens: jax.Array
    mask: jax.Array
    resp_mask: jax.Array
    token_weights: jax.Array
    half: jax.Array
    logp_old: jax.Array
    values_old: jax.Array | None
    advantages: jax.Array
    returns: jax.Array
    applies: jax.Array
    logp_ref: jax.Array | None
    ref_logps: jax.Array | None

    @property
    def context(self) -> int:
        """C, positions before the response."""
        return self.tokens.shape[1] - self.resp_mask.shape[1]

    @property
    def valid(self) -> jax.Array:
        """bool[B, T, H]: response tokens of sequences that the stream applies to."""
        return self.resp_mask[..., None] & self.applies[:, None, :]


class Scales(NamedTuple):
    """Constants of one step."""

    tokens: jax.Array
    """f32[]: weight of the response tokens per minibatch (their number, or that of sequences), over all devices."""
    stream_tokens: jax.Array
    """f32[H]: of them, those whose sequence the stream applies to."""
    multipliers: jax.Array
    """f32[M]."""
    stats: WeightStats
    """What weights are decided from, but for the Gram matrix, which every minibatch measures."""


def strided(batch: Any, count: int) -> Any:
    """Cut a pytree's leading axis [S, ...] to [count, S / count, ...], every count-th row to the same part.

    Strided, so that on a mesh each device keeps its own rows of each part.
    """
    return jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), batch)
