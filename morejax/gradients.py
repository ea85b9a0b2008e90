"""Gram matrices of the streams' policy gradients: exact over all parameters, or where they cost next to nothing.

Every stream's surrogate has the gradient g_i = sum_n c_ni grad log pi(y_n) with per-token scalars c_ni, so H gradients
are H read-outs of one Jacobian. The cheap forms look at the end of the network, where they need no pass through the
trunk. With final hidden states h_n, r_n = onehot(y_n) - p_n and u_n = W^T r_n, its pull through the head:

    virtual      sum_n c_ni u_n h_n^T         a D x D layer Z = I between the hidden states and the head
    final_norm   sum_n c_ni [u_n h_n, u_n]    a gain of 1 and a bias of 0 on the hidden states
    last_layer   sum_n c_ni r_n h_n^T         the head itself
    all          sum_n c_ni grad log pi(y_n)  every parameter: exact, one backward pass a stream

Each `rows_*` takes coefficients f32[S, T, R], zero on masked tokens, for R read-outs (the H streams, or their halves)
and gives R rows, sums over tokens: over slices of a batch and over devices they are added up. `gram` of the total is
the matrix f32[R, R] of their inner products; the cheap forms' stand in for the exact one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

_HIGHEST = jax.lax.Precision.HIGHEST  # matrix units would round float32 to TF32


def rows_virtual(coefficients: jax.Array, pulled: jax.Array, hidden: jax.Array) -> jax.Array:
    """Gradients of a virtual D x D layer before the head: sum_n c_ni u_n h_n^T.

    Args:
      coefficients: f32[S, T, R], c_ni, zero on masked tokens.
      pulled: f32[S, T, D], u_n, the head's pull of onehot(y_n) - p_n.
      hidden: f32[S, T, D], h_n.

    Returns:
      f32[R, D * D].
    """
    return _outer(coefficients, pulled, hidden)


def rows_last_layer(coefficients: jax.Array, residual: jax.Array, hidden: jax.Array) -> jax.Array:
    """Gradients of the head's own matrix; a tied embedding counts as head only.

    Args:
      coefficients: f32[S, T, R].
      residual: f32[S, T, V], r_n = onehot(y_n) - p_n.
      hidden: f32[S, T, D].

    Returns:
      f32[R, V * D].
    """
    return _outer(coefficients, residual, hidden)


def rows_final_norm(coefficients: jax.Array, pulled: jax.Array, hidden: jax.Array) -> jax.Array:
    """Gradients of a virtual gain and bias of the final hidden states: the leanest form.

    They span what the gain and bias of a final norm span, whatever their values are by now.

    Args: as `rows_virtual`.

    Returns:
      f32[R, 2 D].
    """
    streams, width = coefficients.shape[-1], hidden.shape[-1]
    parts = jnp.concatenate([pulled * hidden, pulled], axis=-1).reshape(-1, 2 * width)
    return jnp.matmul(coefficients.reshape(-1, streams).T, parts, precision=_HIGHEST)


def rows_all(coefficients: jax.Array, pull: Callable[[jax.Array], Any]) -> Any:
    """Gradients of all parameters, one backward pass a stream, one after the other.

    Args:
      coefficients: f32[S, T, R].
      pull: maps one stream's coefficients f32[S, T] to the gradient pytree of sum_n c_n log pi(y_n).

    Returns:
      The gradient pytree with a leading axis R.
    """
    # One stream at a time: activations' cotangents are needed once, not once a stream.
    return jax.lax.map(pull, jnp.moveaxis(coefficients, -1, 0))


def gram(rows: Any, preconditioner: Any = None) -> jax.Array:
    """Inner products of rows, summed over the leaves: G_ij = sum_p (d_p g_ip) (d_p g_jp).

    Args:
      rows: pytree of f32[R, ...], already summed over tokens, slices and devices.
      preconditioner: d, a pytree like one row (see `adam_preconditioner`); None: 1 everywhere.

    Returns:
      f32[R, R].
    """
    if preconditioner is not None:
        rows = jax.tree.map(lambda g, p: g * p[None], rows, preconditioner)
    flat = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(rows)]
    return jnp.stack([jnp.matmul(leaf, leaf.T, precision=_HIGHEST) for leaf in flat]).sum(0)


def combine_rows(rows: Any, mix: jax.Array) -> Any:
    """Weighted sum of rows, sum_i a_i g_i, by leaf.

    Args:
      rows: pytree of f32[R, ...]; where R is twice the number of weights they are halves (see `split_halves`).
      mix: f32[H].

    Returns:
      The pytree of one row.
    """

    def combined(leaf: jax.Array) -> jax.Array:
        weights = jnp.tile(mix, leaf.shape[0] // mix.shape[0])
        return jnp.tensordot(weights, leaf, axes=1, precision=_HIGHEST)

    return jax.tree.map(combined, rows)


def adam_preconditioner(opt_state: Any, params: Any, eps: float = 1e-2) -> Any:
    """What Adam divides a gradient by, as a factor: 1 / (sqrt(v / max v) + eps); 1 everywhere before the first update.

    Only its proportions matter, so v is taken in units of its largest entry and the bias correction is left out.

    Args:
      opt_state: optax state that holds a second moment `nu` for these parameters.
      params: the part of the parameters that is asked for, a dict.
      eps: bounds the factor of a parameter that never had a gradient: without it the first appearance of a rare token
        would decide the norms.

    Raises:
      ValueError: the optimizer keeps no second moment.
    """
    moments = [state.nu for state in jax.tree.leaves(opt_state, is_leaf=_has_moment) if _has_moment(state)]
    if not moments:
        raise ValueError("step.norm_space = adam needs an optimizer with a second moment (optax.scale_by_adam)")
    nu = {name: moments[0][name] for name in params}
    largest = jnp.stack([jnp.max(leaf) for leaf in jax.tree.leaves(nu)]).max()
    unit = jnp.where(largest > 0, largest, 1.0)
    return jax.tree.map(lambda v: jnp.where(largest > 0, 1.0 / (jnp.sqrt(v / unit) + eps), 1.0), nu)


def split_halves(coefficients: jax.Array, half: jax.Array) -> jax.Array:
    """Coefficients of the two halves of a batch as 2H read-outs.

    Args:
      coefficients: f32[S, T, H].
      half: bool[S], which half a sequence belongs to.

    Returns:
      f32[S, T, 2H], first the streams on the one half, then on the other.
    """
    chosen = half[:, None, None]
    return jnp.concatenate([jnp.where(chosen, coefficients, 0.0), jnp.where(chosen, 0.0, coefficients)], axis=-1)


def signal_gram(gram: jax.Array) -> jax.Array:
    """Gram matrix of the expected gradients, free of sampling noise, from the halves' f32[2H, 2H].

        G_ij = 2 (<a_i, b_j> + <b_i, a_j>),      g_i = a_i + b_i over two independent halves

    ||g||^2 on one batch is signal + variance / B; inner products across halves share no sample, so their mean is the
    signal alone. A diagonal below 0 means that nothing but noise was seen.

    Returns:
      f32[H, H].
    """
    streams = gram.shape[0] // 2
    across = gram[:streams, streams:]
    return 2.0 * (across + across.T)


def _has_moment(state: Any) -> bool:
    return hasattr(state, "nu")


def _outer(coefficients: jax.Array, left: jax.Array, right: jax.Array) -> jax.Array:
    """sum_n c_ni left_n right_n^T as rows, one matrix product a stream: the memory stays at one N x D."""
    streams = coefficients.shape[-1]
    left, right = left.reshape(-1, left.shape[-1]), right.reshape(-1, right.shape[-1])
    layers = jax.lax.map(lambda c: (left * c[:, None]).T @ right, coefficients.reshape(-1, streams).T)
    return layers.reshape(streams, -1)
