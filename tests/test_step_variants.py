"""Every variant of the step, one config field each: by hand where a few numbers show it; the state keeps its form."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from morejax.models import CriticConfig
from morejax.step import stream_rewards, train_step

NO_CRITIC = CriticConfig(kind="none")


def grouped(core, seed=0, **changes):
    """A rollout without values in four groups of four, one from each quarter, so that they lie across devices."""
    rollout = core.rollout(seed).replace(values_old=None, group=np.arange(16, dtype=np.int32) % 4)
    return rollout.replace(**changes)


VARIANTS = {
    "group_mean": {"baseline": "group_mean"},
    "leave_one_out": {"baseline": "leave_one_out", "adv_norm": "none"},
    "gdpo": {"baseline": "group_mean", "adv_norm": "group"},
    "after": {"adv_norm": "after"},
    "sequence mean": {"loss_mean": "sequence"},
    "k1_reward": {"kl": "k1_reward", "kl_controller": "multiplier"},
    "kl constraint": {"kl": "k3", "kl_controller": "multiplier", "multipliers": "softplus"},
    "hinge": {"multipliers": "hinge"},
    "crpo": {"multipliers": "crpo"},
    "exp": {"multipliers": "exp"},
    "sigmoid": {"multipliers": "sigmoid"},
    "tanh": {"multipliers": "tanh"},
    "gradnorm": {"weights": "gradnorm", "norm_every": 2},
    "dyn": {"weights": "dyn", "norm_every": 0},
    "improve": {"weights": "improve"},
    "mgda": {"weights": "mgda", "norm_at": "last_layer"},
    "pcgrad": {"weights": "pcgrad", "norm_at": "final_norm"},
    "cagrad": {"weights": "cagrad"},
    "signal": {"weights": "inv_norm", "norm_of": "signal"},
    "upgrad": {"weights": "upgrad", "norm_at": "all", "norm_space": "adam"},
    "cv": {"weights": "cv"},
    "var": {"weights": "var"},
    "ctwa": {"weights": "ctwa"},
}


def setup(core, name, **numbers):
    """Config, state and rollout of a variant."""
    config = core.config(**VARIANTS[name])
    critic = NO_CRITIC if config.baseline != "critic" else None
    model = core.model(len(config.streams), critic=critic)
    rollout = core.rollout() if config.baseline == "critic" else grouped(core)
    if config.kl == "k1_reward":
        rollout = rollout.replace(values_old=np.pad(rollout.values_old, ((0, 0), (0, 0), (0, 1))))
    return config, core.state(config, core.numbers(**numbers), model=model), rollout


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_keeps_shapes_and_types(core, name):
    """A leaf that changed its shape or type would compile the step a second time, or break a checkpoint."""
    config, state, rollout = setup(core, name)
    new, metrics = jax.eval_shape(partial(train_step, config=config), state, rollout)
    before, after = (
        jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), s) for s in (jax.eval_shape(lambda x: x, state), new)
    )
    assert before == after
    assert all(value.shape == () and value.dtype == jnp.float32 for value in metrics.values())


def signal_of(core, config, rollout, numbers=None):
    """Gradient of the step's policy at rate 0, and its metrics: what a variant changes, and nothing else."""
    critic = NO_CRITIC if config.baseline != "critic" else None
    numbers = numbers or core.numbers()
    numbers = replace(numbers, learning_rate=0.0, value_learning_rate=0.0, max_grad_norm=1e9)
    state = core.state(config, numbers, tx=core.keep_gradient, model=core.model(len(config.streams), critic=critic))
    return core.step(config)(state, rollout)


def test_a_group_without_spread_teaches_nothing(core):
    """All members of every group score alike, groups differ: a group baseline leaves no advantage at all."""
    config = core.config(baseline="group_mean", adv_norm="none", kl="none")
    rollout = grouped(core, applies=np.ones((16, 5), bool))
    last = rollout.resp_mask.sum(1) - 1
    objectives, constraints = np.zeros_like(rollout.objectives), np.zeros_like(rollout.constraints)
    objectives[np.arange(16), last] = (rollout.group + 1.0)[:, None]
    constraints[np.arange(16), last] = 2.0
    _, metrics = signal_of(core, config, rollout.replace(objectives=objectives, constraints=constraints))
    assert metrics["grad_norm"] == 0
    objectives[0, last[0], 0] += 1.0  # one member of group 0 does better
    _, metrics = signal_of(core, config, rollout.replace(objectives=objectives, constraints=constraints))
    assert metrics["grad_norm/likeness"] > 0
    assert metrics["grad_norm/fluency"] == 0


def test_leave_one_out_is_the_group_mean_stretched(core):
    """n / (n - 1) = 4 / 3 where a stream applies to all four members."""
    rollout = grouped(core, applies=np.ones((16, 5), bool))
    norms = [
        signal_of(core, core.config(baseline=how, adv_norm="none", kl="none"), rollout)[1]["grad_norm/likeness"]
        for how in ("group_mean", "leave_one_out")
    ]
    np.testing.assert_allclose(norms[1] / norms[0], 4 / 3, rtol=1e-5)


def test_after_scales_all_streams_alike(core):
    """The mixture gets unit variance; ratios between the streams' gradients are those of centred advantages."""
    found = {how: signal_of(core, core.config(adv_norm=how), core.rollout())[1] for how in ("center", "after")}
    names = core.config().streams
    ratios = [found["after"][f"grad_norm/{n}"] / found["center"][f"grad_norm/{n}"] for n in names]
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-4)
    assert abs(ratios[0] - 1) > 0.05


@pytest.mark.parametrize("how", ["token", "sequence"])
def test_loss_means_by_hand(core, how):
    """At rho = 1 and with zero values A_t = R_s: the loss is minus the mean of R over tokens, or over sequences."""
    config = core.config(loss_mean=how, adv_norm="none")
    rollout = core.rollout().replace(applies=np.ones((16, 5), bool), values_old=np.zeros((16, 5, 5), np.float32))
    lengths = rollout.resp_mask.sum(1)
    objectives, returns = np.zeros_like(rollout.objectives), np.arange(16.0)
    objectives[np.arange(16), lengths - 1, 0] = returns
    rollout = rollout.replace(objectives=objectives)
    rollout = rollout.replace(logp_old=core.logp(core.state(config), rollout))
    _, metrics = signal_of(core, config, rollout)
    weights = lengths if how == "token" else np.ones(16)
    np.testing.assert_allclose(metrics["stream_loss/likeness"], -np.average(returns, weights=weights), rtol=1e-5)


def test_later_turns_bring_a_turn_credit_by_hand(core):
    """Dialogue 0 has turns 0, 1, 3 with rewards 1, 2, 4; gamma_turn 0.5: turn 0 gets 2/2 + 4/8 more, turn 1 4/4."""
    config = core.config()
    dialogue, turn = np.arange(16, dtype=np.int32) + 100, np.zeros(16, np.int32)
    dialogue[:3], turn[:3] = 0, [0, 1, 3]
    rollout = core.rollout().replace(dialogue=dialogue, turn=turn, applies=np.ones((16, 5), bool))
    constraints, last = np.zeros_like(rollout.constraints), rollout.resp_mask.sum(1) - 1
    constraints[[0, 1, 2], last[:3], 0] = [1.0, 2.0, 4.0]
    rollout = rollout.replace(constraints=constraints)
    state = core.state(config, core.numbers(stream_gamma_turn={"inform": 0.5}))
    rewards = np.asarray(stream_rewards(state, rollout, config))
    np.testing.assert_allclose(rewards[[0, 1, 2], last[:3], 3], [1 + 1 + 0.5, 2 + 1, 4], rtol=1e-6)
    assert rewards[..., 3].sum() == pytest.approx(9.5)
    np.testing.assert_allclose(rewards[..., 4], np.where(rollout.resp_mask, constraints[..., 1], 0))


def test_a_kl_that_is_a_reward_is_a_stream_in_nats(core):
    """r_t = -(log pi_old - log pi_ref); its coefficient is the KL's own, not divided by 1 + Lambda."""
    config, state, rollout = setup(core, "k1_reward", kl_coef=0.25)
    rewards = stream_rewards(state, rollout, config)
    expected = np.where(rollout.resp_mask, rollout.logp_ref - rollout.logp_old, 0.0)
    np.testing.assert_allclose(rewards[..., 5], expected, rtol=1e-6)
    _, metrics = core.step(config)(state, rollout)
    assert {"grad_norm/kl", "advantage_sigma/kl", "stream_loss/kl"} <= set(metrics)
    assert "J/kl" not in metrics
    coefficients = [metrics[f"weight/{n}"] for n in config.objectives]
    coefficients += [metrics[f"multiplier/{n}"] for n in config.constraints]
    scale = 1 + sum(metrics[f"multiplier/{n}"] for n in config.constraints)
    expected = sum(
        a / scale * metrics[f"stream_loss/{n}"] for a, n in zip(coefficients, config.reward_streams, strict=True)
    )
    np.testing.assert_allclose(metrics["policy_loss"], expected + 0.25 * metrics["stream_loss/kl"], rtol=1e-4)


def test_the_kl_as_a_constraint_moves_its_coefficient_by_hand(core):
    """pid on e = KL - target, kp 2, ki 0.05, start 0.5: lambda = 2 e + 0.5 + 0.05 e."""
    config = core.config(kl="k3", kl_controller="multiplier")
    numbers = core.numbers(kl_coef=0.5, kl_target=0.01)
    new, metrics = core.step(config)(core.state(config, numbers), core.rollout())
    error = float(metrics["kl"]) - 0.01
    assert error > 0
    np.testing.assert_allclose(new.kl_coef, min(2.05 * error + 0.5, 10.0), rtol=1e-5)
    assert metrics["kl_coef"] == new.kl_coef == new.kl_multiplier.value[0]


def test_hinge_pushes_only_prompts_that_violate(core):
    """inform scores 1 everywhere but in row 3: only that row's tokens carry its gradient."""
    config = core.config(multipliers="hinge", kl="none")
    scores = core.rollout().scores.copy()
    scores[:, 3] = 1.0
    _, metrics = signal_of(core, config, core.rollout().replace(scores=scores))
    assert metrics["grad_norm/inform"] == 0
    assert metrics["multiplier/inform"] == 1
    scores[3, 3] = 0.0
    _, metrics = signal_of(core, config, core.rollout().replace(scores=scores))
    assert metrics["grad_norm/inform"] > 0


def test_crpo_optimises_the_worst_violation_alone(core):
    """inform 0.3 below its threshold, success 0.1: inform alone has a share; with both met the objectives alone."""
    config = core.config(multipliers="crpo")
    scores = core.rollout().scores.copy()
    scores[:, 3], scores[:, 4] = 0.6, 0.5
    _, metrics = signal_of(core, config, core.rollout().replace(scores=scores))
    shares = [metrics[f"share/{name}"] for name in config.streams]
    np.testing.assert_allclose(shares, [0, 0, 0, 1, 0], atol=1e-6)
    scores[:, 3:] = 1.0
    _, metrics = signal_of(core, config, core.rollout().replace(scores=scores))
    shares = np.array([metrics[f"share/{name}"] for name in config.streams])
    np.testing.assert_allclose(shares[3:], 0)
    np.testing.assert_allclose(shares[:3].sum(), 1, rtol=1e-6)


@pytest.mark.parametrize(("every", "moves"), [(1, 4), (2, 2), (3, 2), (0, 1)])
def test_weights_move_when_norms_are_measured(core, every, moves):
    """2 epochs x 2 minibatches at rate 0, equal minibatches: w = e^n w_0 + (1 - e^n) t after n moves."""
    half = core.rollout(sequences=8)
    rollout = jax.tree.map(lambda x: np.repeat(x, 2, axis=0), half)
    config = core.config(epochs=2, norm_every=every, weights="inv_norm")
    numbers = core.numbers(learning_rate=0.0, value_learning_rate=0.0, weight_ema=0.7)
    state, metrics = core.step(config)(core.state(config, numbers), rollout)
    inverse = np.array([1 / metrics[f"grad_norm/{name}"] for name in config.objectives])
    target = 0.9 * inverse / inverse.sum() + 0.1 / 3
    np.testing.assert_allclose(state.weights.weights, 0.7**moves / 3 + (1 - 0.7**moves) * target, rtol=1e-5)


def test_per_domain_constraints_are_a_change_of_shape(core):
    """Success of hotels and of trains: two columns, each applying to its own dialogues, two multipliers."""
    streams = {"objectives": ("likeness",), "constraints": ("success/hotel", "success/train")}
    config = core.config(**streams)
    rollout = core.rollout(streams=streams)
    applies = np.ones((16, 3), bool)
    applies[:8, 1], applies[8:, 2] = False, False
    scores = np.ones((16, 3), np.float32)
    scores[8:, 1], scores[:8, 2] = 0.25, 0.75
    numbers = core.numbers(thresholds=dict.fromkeys(streams["constraints"], 0.5))
    state = core.state(config, numbers, model=core.model(3))
    new, metrics = core.step(config)(state, rollout.replace(applies=applies, scores=scores, score_weights=None))
    assert (metrics["J/success/hotel"], metrics["J/success/train"]) == (0.25, 0.75)
    assert new.multipliers.value[0] > 1 > new.multipliers.value[1]


@pytest.mark.parametrize(
    ("changes", "fields", "message"),
    [
        ({"baseline": "group_mean"}, {}, r"step\.baseline = group_mean needs a model without a critic"),
        ({}, {"values_old": None}, r"step\.baseline = critic needs rollout\.values_old"),
        ({}, {"turn": np.zeros(16, np.int32)}, r"rollout\.dialogue and rollout\.turn, and dialogue is missing"),
        ({"kl": "k1_reward"}, {"logp_ref": None}, r"step\.kl = k1_reward needs rollout\.logp_ref"),
    ],
)
def test_a_rollout_that_lacks_something_is_refused(core, changes, fields, message):
    config = core.config(**changes)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(partial(train_step, config=config), core.state(config), core.rollout().replace(**fields))


def test_a_start_that_the_rule_cannot_take_names_its_flag(core):
    config = core.config(kl="k3", kl_controller="multiplier", multipliers="exp")
    with pytest.raises(ValueError, match=r"--numbers\.kl-coef must be at least 1e-06 .* exp, not 0"):
        core.state(config, core.numbers(kl_coef=0.0))


def test_groups_are_asked_for(core):
    config = core.config(baseline="group_mean")
    state = core.state(config, model=core.model(5, critic=NO_CRITIC))
    with pytest.raises(ValueError, match=r"step\.baseline = group_mean needs rollout\.group"):
        jax.eval_shape(partial(train_step, config=config), state, core.rollout().replace(values_old=None))
