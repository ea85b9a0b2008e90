"""Sums and means over masked arrays that may be split over devices.

Every mean is a global numerator over a global denominator: with an ``axis_name`` both are summed over
the devices before they are divided, so one device, ``pmap`` and ``shard_map`` see the same number.
Without an ``axis_name`` (one device, or ``jit`` on a mesh, where XLA inserts the reductions) the
collectives are the identity.
"""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp

Axis = int | tuple[int, ...] | None


def psum(x: Any, axis_name: str | None) -> Any:
    """Sum a pytree over the devices of ``axis_name``; the identity when it is ``None``.

    Args:
        x: pytree of arrays, one partial sum per device.
        axis_name: name of a ``pmap``/``shard_map`` axis, or ``None``.

    Returns:
        The same pytree, summed over the axis.
    """
    return x if axis_name is None else jax.lax.psum(x, axis_name)


def _local_sums(x: jax.Array, mask: jax.Array, axis: Axis) -> tuple[jax.Array, jax.Array]:
    """Sum of x*mask and of mask on this device; masked entries are never read, not even a NaN."""
    x = jnp.asarray(x)
    chex.assert_equal_rank([x, mask])
    weight = jnp.broadcast_to(mask, x.shape).astype(jnp.float32)
    kept = jnp.where(weight != 0, x, 0).astype(jnp.float32)
    return jnp.sum(kept * weight, axis=axis), jnp.sum(weight, axis=axis)


def masked_sum(x: jax.Array, mask: jax.Array, axis_name: str | None = None, axis: Axis = None) -> jax.Array:
    """Global sum of ``x * mask``; entries with mask 0 may hold anything.

    Args:
        x: float array of any shape.
        mask: bool, or float weights, of the same rank; axes of length 1 are broadcast.
        axis_name: device axis to sum over, or ``None``.
        axis: array axes to sum over; all of them by default.

    Returns:
        f32 array, ``x.shape`` without ``axis``.
    """
    return psum(_local_sums(x, mask, axis)[0], axis_name)


def masked_mean(x: jax.Array, mask: jax.Array, axis_name: str | None = None, axis: Axis = None) -> jax.Array:
    """Global weighted mean ``sum(x * mask) / sum(mask)``; 0 where the mask is empty.

    Args:
        x: float array of any shape.
        mask: bool, or non-negative float weights, of the same rank; axes of length 1 are broadcast.
        axis_name: device axis to sum over, or ``None``.
        axis: array axes to average over; all of them by default.

    Returns:
        f32 array, ``x.shape`` without ``axis``.
    """
    total, count = psum(_local_sums(x, mask, axis), axis_name)
    return _safe_divide(total, count)


def masked_moments(
    x: jax.Array, mask: jax.Array, axis_name: str | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean, population standard deviation and count of every stream (last axis), over all other axes.

    Two passes (mean first, then squared distances): ``E[x^2] - E[x]^2`` loses all digits in float32 for
    a stream whose mean is large against its spread.

    Args:
        x: f32[..., H].
        mask: bool[..., H], which entries count.
        axis_name: device axis to sum over, or ``None``.

    Returns:
        mean f32[H], standard deviation f32[H], number of entries f32[H]; all 0 for an empty stream.
    """
    chex.assert_equal_shape([x, mask])
    axes = tuple(range(x.ndim - 1))
    total, count = psum(_local_sums(x, mask, axes), axis_name)
    mean = _safe_divide(total, count)
    centred = x - jnp.broadcast_to(mean, x.shape)
    variance = _safe_divide(masked_sum(jnp.square(centred), mask, axis_name, axes), count)
    return mean, jnp.sqrt(variance), count


def _safe_divide(total: jax.Array, count: jax.Array) -> jax.Array:
    return jnp.where(count > 0, total / jnp.where(count > 0, count, 1.0), 0.0)
