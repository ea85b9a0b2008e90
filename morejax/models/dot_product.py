"""Scaled dot-product attention with its backward pass written out.

    w = softmax(q k^T / sqrt(E) + bias),   o = w v
    dv = w^T do,   ds = w (dw - sum_p dw w),   dw = do v^T,   dq = ds k / sqrt(E),   dk = ds^T q / sqrt(E)

The same sums as automatic differentiation's, in plain batched products that keep every array as `[batch, head, row,
column]`: derived from einsums, XLA on CPU lays some of them out the other way round and takes twice as long.

Causal rows of queries are cut into blocks (`causal_attention`).

Shape letters: B batch, Q query positions, P key positions, N heads, K heads of keys and values (N a multiple of it),
E head width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


@jax.custom_vjp
def dot_product_attention(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(E) + bias) v; the softmax is float32, products are in the inputs' type.

    Queries that share a head of keys stand behind one another as if they were more positions, so that keys and values
    are read once and never repeated.

    Args:
      q: `[B, N, Q, E]`.
      k, v: `[B, K, P, E]`, of the type of q.
      bias: f32, broadcast to `[B, N, Q, P]`; no gradient flows into it.

    Returns:
      `[B, N, Q, E]`.
    """
    return _forward(q, k, v, bias)[0]


def _forward(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array):
    scores = jnp.matmul(_grouped(q, k), _transposed(k), preferred_element_type=jnp.float32)
    scores = scores.reshape(*q.shape[:3], k.shape[2]) * (q.shape[-1] ** -0.5) + bias
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    mixed = jnp.matmul(_grouped(weights, v), v).reshape(q.shape)
    return mixed, (q, k, v, weights)


def _backward(saved, cotangent: jax.Array):
    q, k, v, weights = saved
    grouped = _grouped(cotangent, v)
    v_bar = jnp.matmul(_transposed(_grouped(weights, v)), grouped)
    weights_bar = jnp.matmul(grouped, _transposed(v), preferred_element_type=jnp.float32).reshape(weights.shape)
    mean = (weights_bar * weights).sum(-1, keepdims=True)
    scores_bar = (weights * (weights_bar - mean) * (q.shape[-1] ** -0.5)).astype(q.dtype)
    grouped = _grouped(scores_bar, k)
    return jnp.matmul(grouped, k).reshape(q.shape), jnp.matmul(_transposed(grouped), _grouped(q, k)), v_bar, None


dot_product_attention.defvjp(_forward, _backward)


def causal_attention(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array) -> jax.Array:
    """`dot_product_attention` of the last Q of P positions, whose queries see no key behind them.

    Long rows of queries are cut into blocks, and a block leaves out the keys that none of its queries sees: of four
    blocks' products 5/8 are left. What is left out had the weight exp(-1e9) = 0, so the sums are the same.

    Args:
      q: `[B, N, Q, E]`, the queries of positions P - Q to P - 1.
      k, v: `[B, K, P, E]`.
      bias: f32, broadcast to `[B, N, Q, P]`; hides every key behind its query.

    Returns:
      `[B, N, Q, E]`.
    """
    queries, keys = q.shape[2], k.shape[2]
    size = _block(queries)
    mixed = []
    for first in range(0, queries, size):
        last = min(first + size, queries)
        seen = keys - queries + last
        rows = bias[:, :, first:last, :seen]
        mixed.append(dot_product_attention(q[:, :, first:last], k[:, :, :seen], v[:, :, :seen], rows))
    return mixed[0] if len(mixed) == 1 else jnp.concatenate(mixed, axis=2)


def _block(queries: int) -> int:
    """Queries of a block: at most four blocks, of 128 or more, since small products cost more than they save."""
    return queries if queries < 256 else max(128, -(-queries // 4))


def _grouped(x: jax.Array, keys: jax.Array) -> jax.Array:
    """`[B, N, Q, X]` to `[B, K, N / K Q, X]`."""
    return x.reshape(x.shape[0], keys.shape[1], -1, x.shape[-1])


def _transposed(x: jax.Array) -> jax.Array:
    return jnp.swapaxes(x, -1, -2)
