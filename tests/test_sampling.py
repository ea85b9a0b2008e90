"""Filters: what they keep, by hand and against sorting, and what is drawn through them."""

from __future__ import annotations

import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from morejax.sampling import SamplerConfig, draw, filter_logits, penalise

PROBABILITIES = np.float32([0.02, 0.4, 0.05, 0.2, 0.03, 0.3])


def kept(logits, **settings):
    """Indices of each row that a filter leaves."""
    found = np.asarray(filter_logits(jnp.asarray(logits), SamplerConfig(**settings)))
    assert ((found == logits) | (found == -np.inf)).all()
    return [set(np.flatnonzero(np.isfinite(row)).tolist()) for row in found]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"top_k": 1}, {1}),
        ({"top_k": 3}, {1, 3, 5}),
        ({"top_k": 6}, {0, 1, 2, 3, 4, 5}),
        ({"top_k": 100}, {0, 1, 2, 3, 4, 5}),
        ({"top_p": 0.3}, {1}),
        ({"top_p": 0.65}, {1, 5}),
        ({"top_p": 0.75}, {1, 3, 5}),
        ({"top_p": 0.97}, {1, 2, 3, 4, 5}),
        ({"min_p": 0.1}, {1, 2, 3, 5}),
        ({"min_p": 0.6}, {1, 5}),
        ({"min_p": 1.0}, {1}),
        # 0.4 + 0.3 of the three that top-k leaves is 0.78 of them.
        ({"top_k": 3, "top_p": 0.75}, {1, 5}),
        ({"top_k": 3, "top_p": 0.8}, {1, 3, 5}),
        ({"top_p": 0.97, "min_p": 0.6}, {1, 5}),
    ],
)
def test_what_a_filter_keeps_by_hand(settings, expected):
    rows = np.log(np.stack([PROBABILITIES, PROBABILITIES[::-1]])) + np.float32([[0.0], [7.0]])
    assert kept(rows, **settings) == [expected, {5 - index for index in expected}]


def test_ties_with_the_last_token_stay():
    assert kept(np.float32([[1.0, 0.0, 1.0, 0.0, -1.0]]), top_k=3) == [{0, 1, 2, 3}]
    assert kept(np.zeros((1, 8), np.float32), top_p=0.2) == [set(range(8))]


def test_zero_and_negative_zero_are_one_number():
    assert kept(np.float32([[0.0, -0.0, -1.0]]), top_k=1)[0] in ({0}, {0, 1})


@given(
    arrays(np.float32, (3, 20), elements=st.floats(-30, 30, width=32), unique=True),
    st.integers(1, 20),
    st.floats(0.05, 0.95),
)
def test_bisection_keeps_what_sorting_keeps(logits, count, share):
    order = np.argsort(-logits, axis=-1)
    for row, found in enumerate(kept(logits, top_k=count)):
        assert found == set(order[row, :count].tolist())
    weights = np.exp(np.float64(logits) - logits.max(-1, keepdims=True))
    for row, found in enumerate(kept(logits, top_p=share)):
        ranked = weights[row, order[row]] / weights[row].sum()
        reached = np.cumsum(ranked)
        fewest = int(np.searchsorted(reached, share)) + 1
        # A share that lies within rounding of a sum may be reached one token sooner or later.
        exact = np.abs(reached - share).min() > 1e-5
        assert found == set(order[row, : len(found)].tolist())
        assert len(found) == fewest or not exact


@cache
def draws(settings):
    """1e5 draws of 200 tokens through a filter, and the probabilities that are left."""
    logits = jnp.asarray(2.0 * np.random.default_rng(0).normal(size=(1, 200)), jnp.float32)
    filtered = filter_logits(logits, SamplerConfig(**dict(settings)))
    uniform = jax.random.uniform(jax.random.key(0), (100, 1000))
    one = jax.jit(lambda u: draw(jnp.broadcast_to(filtered, (1000, 200)), u))
    counts = np.bincount(np.concatenate([one(row) for row in uniform]), minlength=200)
    weights = np.exp(np.float64(logits[0]))
    return counts, np.where(np.isfinite(np.asarray(filtered[0])), weights, 0.0)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"top_k": 20},
        {"top_p": 0.8},
        {"min_p": 0.05},
        {"top_k": 50, "top_p": 0.9, "min_p": 0.02},
    ],
    ids=str,
)
def test_draws_through_a_filter_follow_its_softmax(settings):
    """Chi-square of 1e5 draws; what is filtered out is never drawn."""
    counts, weights = draws(tuple(settings.items()))
    left = weights > 0
    assert counts[~left].sum() == 0
    assert settings == {} or 3 < left.sum() < 150
    expected = weights[left] / weights.sum() * 100_000
    usual = expected >= 5
    observed, wanted = counts[left][usual], expected[usual]
    if not usual.all():
        observed, wanted = np.append(observed, counts[left][~usual].sum()), np.append(wanted, expected[~usual].sum())
    assert stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 1e-3


def test_penalty_by_hand():
    logits, seen = np.float32([[2.0, -2.0, 1.0, 0.0]]), np.array([[True, True, False, True]])
    np.testing.assert_allclose(penalise(logits, seen, 2.0), [[1.0, -4.0, 1.0, 0.0]])
    np.testing.assert_allclose(penalise(logits, seen, 0.5), [[4.0, -1.0, 1.0, 0.0]])
    np.testing.assert_array_equal(penalise(logits, seen, 1.0), logits)


def test_filters_that_are_off_are_not_in_the_program():
    logits = jnp.ones((2, 8))
    program = jax.make_jaxpr(lambda x: filter_logits(x, SamplerConfig()))(logits)
    assert program.eqns == []
    assert not SamplerConfig(temperature=0.3, values=True, samples=4, logp_drawn=True).filtered
    for settings in ({"top_k": 1}, {"top_p": 0.5}, {"min_p": 0.1}, {"repetition_penalty": 1.1}, {"end_penalty": -0.1}):
        assert SamplerConfig(**settings).filtered


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1}, r"SamplerConfig\.temperature must not be negative: -1"),
        ({"max_new_tokens": 0}, r"SamplerConfig\.max_new_tokens must be at least 1: 0"),
        ({"top_k": -2}, r"SamplerConfig\.top_k must not be negative: -2"),
        ({"top_p": 0.0}, r"SamplerConfig\.top_p must be above 0 and at most 1: 0\.0"),
        ({"top_p": 1.5}, r"SamplerConfig\.top_p must be above 0 and at most 1: 1\.5"),
        ({"min_p": 1.1}, r"SamplerConfig\.min_p must be between 0 and 1: 1\.1"),
        ({"repetition_penalty": 0.0}, r"SamplerConfig\.repetition_penalty must be above 0: 0\.0"),
        ({"end_penalty": math.inf}, r"SamplerConfig\.end_penalty must be a finite number: inf"),
        ({"samples": 0}, r"SamplerConfig\.samples must be at least 1: 0"),
        ({"cache_dtype": "int8"}, r"SamplerConfig\.cache_dtype must be float32 or bfloat16: 'int8'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SamplerConfig(**settings)
