"""Heads and the models built of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from morejax.models import ActorCritic, CriticConfig, DecoderConfig, RewardHead, ValueHead, merge, pool, split

SMALL = DecoderConfig(vocab_size=32, max_length=16, layers=1, width=8, heads=2)


def test_pool_by_hand():
    """Mean and maximum over the two valid positions; the third, however large, does not count."""
    hidden = jnp.array([[[1.0, -2.0], [3.0, -4.0], [99.0, 99.0]], [[5.0, 5.0], [5.0, 5.0], [5.0, 5.0]]])
    mask = jnp.array([[True, True, False], [False, False, False]])
    np.testing.assert_allclose(pool(hidden, mask), [[2.0, -3.0, 3.0, -2.0], [0.0, 0.0, 0.0, 0.0]])


def test_an_empty_reply_sends_a_finite_gradient():
    gradient = jax.grad(lambda h: pool(h, jnp.zeros((1, 3), bool)).sum())(jnp.ones((1, 3, 2)))
    np.testing.assert_array_equal(gradient, np.zeros((1, 3, 2)))


def test_values_start_at_zero():
    """So that the first advantages are the returns, not noise."""
    values = jax.jit(lambda hidden: ValueHead(8, 5, hidden=4, rngs=nnx.Rngs(0))(hidden))
    np.testing.assert_array_equal(values(np.random.default_rng(0).normal(size=(2, 3, 8))), np.zeros((2, 3, 5)))


def test_reward_head_gives_one_logit_a_reply():
    head = jax.jit(lambda features: RewardHead(8, hidden=4, rngs=nnx.Rngs(0))(features))
    features = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
    assert head(features).shape == (3,)
    # Its norm takes the scale of the trunk away.
    np.testing.assert_allclose(head(1000.0 * features), head(features), rtol=1e-3, atol=1e-4)


def test_an_untied_policy_has_its_own_matrix(core):
    model = core.model(tied=False)
    params = split(model)[1]
    assert set(params) == {"trunk", "policy", "value"}
    hidden = jnp.eye(16)[None]
    np.testing.assert_allclose(model.logits(hidden)[0], params["policy"]["kernel"].T, rtol=1e-5)


@pytest.mark.parametrize("kind", ["own", "shared"])
def test_the_critic_sends_no_gradient_into_the_policy(core, kind):
    model = core.model(critic=CriticConfig(kind=kind, layers=1, width=8, heads=2, hidden=8))
    graphdef, params = split(model)
    assert ("trunk" in params["value"]) == (kind == "own")
    rollout = core.rollout()

    def total(params):
        model = merge(graphdef, params)
        values = model.values(rollout.tokens, rollout.mask, model.hidden(rollout.tokens, rollout.mask))
        assert values.shape == (16, 11, 5)
        return jnp.square(values).sum()

    grads = jax.jit(jax.grad(total), compiler_options=core.fast_compile())(params)
    assert not any(leaf.any() for leaf in jax.tree.leaves(grads["trunk"]))
    assert all(leaf.any() for leaf in jax.tree.leaves(grads["value"]))


def test_a_model_without_critic_says_so():
    for critic in (None, CriticConfig(kind="none")):
        model = nnx.eval_shape(lambda critic=critic: ActorCritic(SMALL, critic=critic, rngs=nnx.Rngs(0)))
        assert set(split(model)[1]) == {"trunk"}
    with pytest.raises(ValueError, match=r"built without a critic: pass critic=CriticConfig"):
        model.values(None, None, None)


def test_an_unknown_critic_is_refused():
    with pytest.raises(ValueError, match=r"--critic\.kind must be own, shared, base or none, not 'both'"):
        CriticConfig(kind="both")


def test_split_and_merge_are_inverse(core):
    graphdef, params = split(core.model())
    again, back = split(merge(graphdef, params))
    assert again == graphdef
    assert hash(again) == hash(graphdef)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    assert all(a is b or (a == b).all() for a, b in zip(*map(jax.tree.leaves, (back, params)), strict=True))
    assert type(params["trunk"]["blocks"]) is dict
