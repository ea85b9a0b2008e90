"""Attention with its written-out backward pass against what automatic differentiation makes of the definition."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from morejax.models.dot_product import causal_attention, dot_product_attention

BATCH, LENGTH, WIDTH = 2, 7, 4


def by_definition(q, k, v, bias):
    """Every query head with a copy of its head of keys, in float32."""
    repeat = q.shape[1] // k.shape[1]
    k, v = (jnp.repeat(x, repeat, axis=1) for x in (k, v))
    scores = jnp.einsum("bnqe,bnpe->bnqp", q, k, precision="highest") / jnp.sqrt(jnp.float32(WIDTH))
    return jnp.einsum("bnqp,bnpe->bnqe", jax.nn.softmax(scores + bias, axis=-1), v, precision="highest")


def inputs(heads, key_heads, queries=LENGTH, dtype=jnp.float32, length=LENGTH):
    rng = np.random.default_rng(0)
    q = rng.normal(size=(BATCH, heads, queries, WIDTH))
    k, v = (rng.normal(size=(BATCH, key_heads, length, WIDTH)) for _ in range(2))
    sees = np.tril(np.ones((length, length), bool))[length - queries :]
    sees = sees[None, None] & (np.arange(length) >= np.array([[0], [2]]))[:, None, None]
    bias = np.where(sees, 0.0, -1e9).astype(np.float32)
    return (*(jnp.asarray(x, dtype) for x in (q, k, v)), jnp.asarray(bias))


def pulled(function, arrays, cotangent):
    value, pull = jax.vjp(lambda q, k, v: function(q, k, v, arrays[3]), *arrays[:3])
    return (value, *pull(cotangent.astype(value.dtype)))


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("queries", [LENGTH, 3, 1])
def test_value_and_gradients_are_those_of_the_definition(heads, key_heads, queries):
    arrays = inputs(heads, key_heads, queries)
    cotangent = jnp.asarray(np.random.default_rng(1).normal(size=arrays[0].shape), jnp.float32)
    for found, expected in zip(
        pulled(dot_product_attention, arrays, cotangent), pulled(by_definition, arrays, cotangent), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_bfloat16_stays_within_its_rounding():
    """8 bits: a softmax weight, a product and a sum of 7, each rounded to 2^-8 of numbers of size 1 to 3."""
    rough, exact = inputs(4, 2, dtype=jnp.bfloat16), inputs(4, 2)
    cotangent = jnp.ones_like(exact[0])
    for found, expected in zip(
        pulled(dot_product_attention, rough, cotangent), pulled(by_definition, exact, cotangent), strict=True
    ):
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.06)


def test_rows_that_see_nothing_stay_finite():
    q, k, v, _ = inputs(2, 2)
    everything_hidden = jnp.full((BATCH, 1, LENGTH, LENGTH), -1e9, jnp.float32)
    for array in pulled(dot_product_attention, (q, k, v, everything_hidden), jnp.ones_like(q)):
        assert np.isfinite(array).all()


@pytest.mark.parametrize(("queries", "length", "blocks"), [(255, 260, 1), (256, 256, 2), (300, 320, 3), (601, 601, 4)])
def test_causal_blocks_are_the_whole(queries, length, blocks, monkeypatch):
    """Values and gradients of every row that sees something, in as many products as said; the first two see nothing."""
    arrays = inputs(4, 2, queries, length=length)
    cotangent = np.random.default_rng(1).normal(size=arrays[0].shape)
    cotangent[1, :, : max(0, 2 - (length - queries))] = 0.0
    shapes = []
    whole = dot_product_attention
    monkeypatch.setattr(
        "morejax.models.dot_product.dot_product_attention",
        lambda q, k, v, bias: shapes.append((q.shape[2], k.shape[2])) or whole(q, k, v, bias),
    )
    (value, *found), (wanted, *expected) = (
        pulled(function, arrays, jnp.asarray(cotangent, jnp.float32)) for function in (causal_attention, by_definition)
    )
    seen = cotangent != 0.0
    np.testing.assert_allclose(np.where(seen, value, 0), np.where(seen, wanted, 0), atol=2e-6)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)
    assert len(shapes) == blocks
    assert sum(rows for rows, _ in shapes) == queries
    assert shapes[-1][1] == length
