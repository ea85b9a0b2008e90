"""A model's first parameters from one program are those that its constructor gives."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx

from morejax.models import ActorCritic, CriticConfig, DecoderConfig, split
from morejax.training.initialise import initial_params, structure

DECODER = DecoderConfig(vocab_size=64, max_length=16, layers=2, width=8, heads=2)


def build():
    return ActorCritic(DECODER, critic=CriticConfig(kind="shared", hidden=4), streams=3, rngs=nnx.Rngs(7))


@pytest.fixture(scope="module")
def eager():
    return split(build())


def test_the_structure_is_the_models_without_its_numbers(eager):
    graphdef, params = structure(build)
    assert graphdef == eager[0]
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), eager[1]
    )


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="only on CPU is the order of roundings kept")
def test_one_program_gives_the_same_bits_as_the_constructor(eager):
    params = initial_params(build)
    assert jax.tree.structure(params) == jax.tree.structure(eager[1])
    for made, expected in zip(jax.tree.leaves(params), jax.tree.leaves(eager[1]), strict=True):
        np.testing.assert_array_equal(made, expected)


def test_parts_alone_are_the_same_parts(eager):
    params = initial_params(build, ["value"])
    assert params.keys() == {"value"}
    for made, expected in zip(jax.tree.leaves(params), jax.tree.leaves(eager[1]["value"]), strict=True):
        np.testing.assert_allclose(made, expected, rtol=1e-6)
    assert initial_params(build, []) == {}
