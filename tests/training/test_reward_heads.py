"""The naturalness head learns what can be learnt; its quality numbers are the textbook's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from morejax.models import ActorCritic, RewardHead, split
from morejax.models.decoder import DecoderConfig
from morejax.models.split import merge
from morejax.training.reward_heads import RewardHeadConfig, calibration, features_of, fit_head, judge, pack


@pytest.fixture(scope="module")
def model():
    return split(ActorCritic(DecoderConfig(vocab_size=64, max_length=32, layers=1, width=8, heads=2), rngs=nnx.Rngs(0)))


def test_calibration_by_hand():
    probability = np.array([0.1, 0.15, 0.8, 0.85, 0.9, 0.3])
    human = np.array([False, True, True, True, False, False])
    quality = calibration(probability, human, bins=5)
    assert quality["examples"] == 6
    # Decided at 0.5: right are 0.1, 0.8, 0.85 and 0.3.
    assert quality["accuracy"] == pytest.approx(4 / 6)
    # 9 pairs of a human and another; 0.15 > 0.1; 0.8 and 0.85 > 0.1 and 0.3.
    assert quality["auc"] == pytest.approx(5 / 9)
    assert quality["brier"] == pytest.approx((0.1**2 + 0.85**2 + 0.2**2 + 0.15**2 + 0.9**2 + 0.3**2) / 6)
    # Bins [0, 0.2), [0.2, 0.4), [0.8, 1]: confidences 0.125, 0.3, 0.85; shares of humans 1/2, 0, 2/3.
    assert quality["bins"] == [
        {"confidence": pytest.approx(0.125), "accuracy": 0.5, "count": 2},
        {"confidence": pytest.approx(0.3), "accuracy": 0.0, "count": 1},
        {"confidence": pytest.approx(0.85), "accuracy": pytest.approx(2 / 3), "count": 3},
    ]
    assert quality["ece"] == pytest.approx((2 * 0.375 + 1 * 0.3 + 3 * (0.85 - 2 / 3)) / 6)


@pytest.mark.parametrize("human_first", [True, False])
def test_equal_probabilities_count_half_whatever_their_order(human_first):
    human = np.array([human_first, not human_first])
    assert calibration(np.array([0.5, 0.5]), human)["auc"] == 0.5
    # One pair is decided, one is not.
    assert calibration(np.array([0.5, 0.5, 0.9]), np.array([*human, True]))["auc"] == pytest.approx(0.75)


def test_probability_one_is_in_the_last_bin():
    assert calibration(np.array([1.0]), np.array([True]))["bins"] == [{"confidence": 1.0, "accuracy": 1.0, "count": 1}]


@pytest.mark.parametrize("labels", [[True, True], [False, False]])
def test_one_class_alone_gives_finite_numbers(labels):
    quality = calibration(np.array([0.2, 0.7]), np.array(labels))
    assert all(np.isfinite(quality[name]) for name in ("accuracy", "auc", "brier", "ece"))


def test_a_separable_problem_is_learnt():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(600, 16)).astype(np.float32)
    human = features[:, 3] - features[:, 7] > 0
    config = RewardHeadConfig(hidden=16, steps=200, batch=64, learning_rate=1e-2)
    graphdef, head = fit_head(features[:400], human[:400], 8, config, seed=0)
    probability = np.asarray(jax.nn.sigmoid(merge(graphdef, head)(jnp.asarray(features[400:]))))
    quality = calibration(probability, human[400:])
    assert quality["accuracy"] > 0.9
    assert quality["auc"] > 0.97


def test_the_same_seed_gives_the_same_head():
    features = np.random.default_rng(0).normal(size=(32, 16)).astype(np.float32)
    config = RewardHeadConfig(hidden=4, steps=3, batch=8)
    one, two, other = (fit_head(features, features[:, 0] > 0, 8, config, seed=seed)[1] for seed in (0, 0, 1))
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), one, two)))
    assert not all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), one, other)))


def test_pack_by_hand():
    tokens, mask = pack([(5, 6), (7,)], [(8,), (9, 10, 11)], context=3, reply=2, pad_id=0, rows=3)
    assert tokens.tolist() == [[0, 5, 6, 8, 0], [0, 0, 7, 9, 10], [0] * 5]
    assert mask.astype(int).tolist() == [[0, 1, 1, 1, 0], [0, 0, 1, 1, 1], [0] * 5]


def test_log_probability_of_a_reply_is_the_mean_over_its_tokens(model):
    graphdef, params = model
    prompt, reply = (5, 6, 7), (8, 9)
    logps, features = features_of(graphdef, params, [prompt], [reply], context=4, reply=3, pad_id=0, batch=2)
    network = merge(graphdef, params)
    tokens = jnp.array([[*prompt, *reply]])
    everything = jax.nn.log_softmax(network.logits(network.hidden(tokens, jnp.ones_like(tokens, bool))))[0]
    expected = (everything[2, 8] + everything[3, 9]) / 2
    assert features.shape == (1, 16)
    np.testing.assert_allclose(logps, [expected], rtol=1e-5)


def test_features_do_not_depend_on_batch_or_padding(model):
    graphdef, params = model
    prompts = [tuple(range(2, 2 + size)) for size in (1, 4, 2, 5, 3)]
    replies = [tuple(range(20, 20 + size)) for size in (3, 1, 2, 3, 1)]
    settings = {"context": 6, "reply": 4, "pad_id": 0}
    together = features_of(graphdef, params, prompts, replies, batch=8, **settings)
    apart = features_of(graphdef, params, prompts, replies, batch=2, **settings)
    assert together[0].shape == (5,)
    for left, right in zip(together, apart, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)


def test_judge_is_fluency_and_naturalness_in_one(model):
    graphdef, params = model
    head_graphdef, head = split(RewardHead(8, hidden=4, rngs=nnx.Rngs(1)))
    prompts, replies = [(2, 3), (4,)], [(20, 21), (22,)]
    tokens, mask = pack(prompts, replies, 3, 2, 0, 2)
    logp, natural = judge(graphdef, head_graphdef, params, head, jnp.asarray(tokens), jnp.asarray(mask), 3)
    expected, features = features_of(graphdef, params, prompts, replies, context=3, reply=2, pad_id=0, batch=2)
    np.testing.assert_allclose(logp, expected, rtol=1e-5)
    np.testing.assert_allclose(natural, jax.nn.sigmoid(merge(head_graphdef, head)(features)), rtol=1e-5)
