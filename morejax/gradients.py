"""Gram matrices of the streams' policy gradients: exact over all parameters, or at a virtual layer.

Every stream's surrogate has the gradient g_i = sum_n c_ni grad log pi(y_n) with per-token scalars c_ni, so H gradients
are H read-outs of one Jacobian. A virtual linear layer Z = I between the final hidden states h_n and the head has the
gradient sum_n c_ni u_n h_n^T, where u_n is the pull of grad_logits log pi(y_n) through the head. It needs no pass
through the trunk, and its Gram matrix stands in for the exact one.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from morejax.collectives import psum


def gram_virtual(
    coefficients: jax.Array, pulled: jax.Array, hidden: jax.Array, axis_name: str | None = None
) -> jax.Array:
    """Gram matrix at a virtual D x D layer before the head: G_ij = <sum_n c_ni u_n h_n^T, sum_n c_nj u_n h_n^T>.

    Args:
      coefficients: f32[S, T, H], c_ni, zero on masked tokens.
      pulled: f32[S, T, D], u_n, the head's pull of onehot(y_n) - p_n.
      hidden: f32[S, T, D], h_n.
      axis_name: device axis to sum over.

    Returns:
      f32[H, H].
    """
    streams, width = coefficients.shape[-1], hidden.shape[-1]
    flat = coefficients.reshape(-1, streams)
    u, h = pulled.reshape(-1, width), hidden.reshape(-1, width)
    # One matrix product a stream keeps the memory at N x D.
    layers = jax.lax.map(lambda c: (u * c[:, None]).T @ h, flat.T)
    rows = psum(layers.reshape(streams, -1), axis_name)
    return rows @ rows.T


def gram_all(
    coefficients: jax.Array, pull: Callable[[jax.Array], dict], axis_name: str | None = None
) -> tuple[jax.Array, dict]:
    """Gram matrix over all parameters, one backward pass a stream.

    Args:
      coefficients: f32[S, T, H].
      pull: maps one stream's coefficients f32[S, T] to the gradient pytree of sum_n c_n log pi(y_n).
      axis_name: device axis to sum over.

    Returns:
      f32[H, H] and the gradients, every leaf with a leading axis H.
    """
    gradients = psum(jax.vmap(pull)(jnp.moveaxis(coefficients, -1, 0)), axis_name)
    leaves = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(gradients)]
    return jnp.stack([leaf @ leaf.T for leaf in leaves]).sum(0), gradients
