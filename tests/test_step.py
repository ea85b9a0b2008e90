"""What one step does: J, multipliers, weights, rates, warm-up, early stop, what must not matter, and its errors."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from morejax.models import CriticConfig
from morejax.scores import mean_scores
from morejax.step import train_step

EPOCHS = 2


@pytest.fixture(scope="module")
def config(core):
    """Two epochs of two minibatches; compiled once for the tests of this module, which only change numbers."""
    return core.config(epochs=EPOCHS)


def equal(one, two, **tolerance):
    """Same leaves, bit for bit unless a tolerance is given."""
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(two), strict=True):
        name = jax.tree_util.keystr(path)
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        if tolerance:
            np.testing.assert_allclose(a, b, err_msg=name, **tolerance)
        else:
            np.testing.assert_array_equal(a, b, err_msg=name)


# ---- J, multipliers, weights -------------------------------------------------------------------------------------


def test_mean_score_by_hand(core):
    """J = sum(weight score) / sum(weight) over the sequences that a stream applies to.

    inform applies to rows 0..3, scores 1, 0, 1, 1, weights 1, 1, 1, 3: J = (1 + 0 + 1 + 3) / 6.
    """
    rollout = core.rollout()
    applies, scores, weights = (np.zeros((16, 5)) for _ in range(3))
    applies[:4, 3], scores[:4, 3], weights[:4, 3] = 1, [1, 0, 1, 1], [1, 1, 1, 3]
    scores[4:, 3], weights[4:, 3] = 99.0, 7.0  # rows that it does not apply to
    score, count = mean_scores(rollout.replace(applies=applies.astype(bool), scores=scores, score_weights=weights))
    np.testing.assert_allclose(score, [0, 0, 0, 5 / 6, 0], rtol=1e-6)
    np.testing.assert_allclose(count, [0, 0, 0, 6, 0])


def test_mean_score_without_scores_is_the_mean_summed_reward(core):
    """likeness: rewards 1 + 2 over two valid tokens in row 0 (the third is padding), 5 in row 1, row 2 not asked."""
    rollout = core.rollout()
    resp_mask = np.zeros((16, 5), bool)
    resp_mask[0, :2] = resp_mask[1:, 0] = True
    objectives, applies = np.zeros((16, 5, 3), np.float32), np.zeros((16, 5), bool)
    objectives[0, :3, 0], objectives[1, 0, 0], objectives[2, 0, 0] = [1, 2, 1000], 5, 77
    applies[:2, 0] = True
    rollout = rollout.replace(
        resp_mask=resp_mask, objectives=objectives, applies=applies, scores=None, score_weights=None
    )
    score, count = mean_scores(rollout)
    np.testing.assert_allclose(score, [4, 0, 0, 0, 0])
    np.testing.assert_allclose(count, [2, 0, 0, 0, 0])


def with_score(rollout, column, value):
    scores = rollout.scores.copy()
    scores[:, column] = value
    return rollout.replace(scores=scores)


def test_multipliers_move_once_a_rollout_by_hand(core, config):
    """PID with kp 2, ki 0.05, EMA 0.9 on inform, d = 0.9, start 1; the first J is adopted.

    J = 0.8:  e = 0.1,  I = 1 + 0.005 = 1.005,    lambda = 0.2 + 1.005  = 1.205
    J = 0:    EMA = 0.72, e = 0.18, I = 1.014,    lambda = 0.36 + 1.014 = 1.374
    """
    state = core.state(config)
    for value, multiplier, violation, smoothed in ((0.8, 1.205, 0.1, 0.8), (0.0, 1.374, 0.9, 0.72)):
        rollout = with_score(core.rollout(), 3, value)
        state, metrics = core.step(config)(state, rollout)
        assert metrics["updates"] == 4
        np.testing.assert_allclose(metrics["J/inform"], value, atol=1e-6)
        np.testing.assert_allclose(metrics["multiplier/inform"], multiplier, rtol=1e-5)
        np.testing.assert_allclose(metrics["constraint/inform/violation"], violation, rtol=1e-5)
        np.testing.assert_allclose(metrics["constraint/inform/score_ema"], smoothed, rtol=1e-5)
        np.testing.assert_allclose(metrics["constraint/inform/threshold"], 0.9, rtol=1e-6)
        np.testing.assert_allclose(state.multipliers.value[0], multiplier, rtol=1e-5)
    np.testing.assert_array_equal(state.multipliers.seen, [2, 2])
    assert state.step == 2


def test_objectives_scores_are_smoothed_and_the_first_is_kept(core, config):
    """score_ema 0.8: 0.5 is adopted; then 0.8 * 0.5 + 0.2 * 1 = 0.6; deficit (1 - 0.6) / (1 - 0.5) = 0.8."""
    state = core.state(config)
    state, metrics = core.step(config)(state, with_score(core.rollout(), 1, 0.5))
    np.testing.assert_allclose(metrics["deficit/fluency"], 1.0, rtol=1e-5)
    state, metrics = core.step(config)(state, with_score(core.rollout(), 1, 1.0))
    np.testing.assert_allclose(state.score_ema[1], 0.6, rtol=1e-6)
    np.testing.assert_allclose(state.score_initial[1], 0.5, rtol=1e-6)
    np.testing.assert_allclose(metrics["deficit/fluency"], 0.8, rtol=1e-5)


def test_weights_move_once_a_minibatch_by_hand(core, config):
    """Equal minibatches and learning rate 0: the target t stays, so w_4 = e^4 w_0 + (1 - e^4) t with e = 0.7.

    t_k = (1 - 0.1) (1 / n_k) / sum(1 / n) + 0.1 / 3: in the first rollout all deficits are 1.
    """
    half = core.rollout(sequences=8)
    rollout = jax.tree.map(lambda x: np.repeat(x, 2, axis=0), half)
    numbers = core.numbers(learning_rate=0.0, value_learning_rate=0.0, weight_ema=0.7)
    state, metrics = core.step(config)(core.state(config, numbers), rollout)
    inverse = np.array([1 / metrics[f"grad_norm/{name}"] for name in config.objectives])
    target = 0.9 * inverse / inverse.sum() + 0.1 / 3
    expected = 0.7**4 / 3 + (1 - 0.7**4) * target
    assert np.abs(expected - 1 / 3).max() > 0.02
    np.testing.assert_allclose(state.weights.weights, expected, rtol=1e-5)
    np.testing.assert_allclose([metrics[f"weight/{name}"] for name in config.objectives], expected, rtol=1e-5)


# ---- rates, clipping, warm-up, early stop ------------------------------------------------------------------------

ONES = optax.stateless(lambda updates, params: jax.tree.map(jnp.ones_like, updates))


@pytest.mark.parametrize(
    ("step", "warmup", "decay_steps", "rate"),
    [(0, 2, 0, 0.0), (1, 2, 0, 0.0), (2, 2, 0, 0.01), (5, 0, 10, 0.01 * 0.55), (20, 0, 10, 0.01 * 0.1)],
)
def test_learning_rates_by_hand(core, step, warmup, decay_steps, rate):
    """An optimizer that answers 1 shows the rates: policy 0 while step < warmup, falling linearly to a tenth."""
    config = core.config()
    numbers = core.numbers(learning_rate=0.01, value_learning_rate=0.02, warmup_steps=warmup, decay_steps=decay_steps)
    state = core.state(config, numbers, tx=ONES).replace(step=jnp.int32(step))
    new, _ = core.step(config)(state, core.rollout())
    moved = jax.tree.map(lambda before, after: before - after, state.params, new.params)
    for name, part in moved.items():
        expected = config.minibatches * (0.02 if name == "value" else rate)
        for leaf in jax.tree.leaves(part):
            np.testing.assert_allclose(leaf, expected, atol=1e-6)


def test_the_policy_stays_and_the_critic_moves_while_warming_up(core, config):
    state = core.state(config, core.numbers(warmup_steps=1))
    first, _ = core.step(config)(state, core.rollout())
    equal(first.params["trunk"], state.params["trunk"])
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), first.params["value"], state.params["value"])
    assert all(jax.tree.leaves(moved))
    second, _ = core.step(config)(first, core.rollout())
    assert (second.params["trunk"]["embedding"] != first.params["trunk"]["embedding"]).any()


@pytest.fixture(scope="module")
def traced(core):
    """A config and a rollout of the policy itself, for an optimizer that keeps the gradient it saw last."""
    config = core.config(weights="inv_norm")
    state = core.state(config, tx=core.keep_gradient)
    return config, core.rollout().replace(logp_old=core.logp(state, core.rollout()))


def test_both_parts_are_clipped_by_their_own_norm(core, traced):
    config, rollout = traced
    numbers = core.numbers(max_grad_norm=1e-3, learning_rate=0.0, value_learning_rate=0.0)
    new, metrics = core.step(config)(core.state(config, numbers, tx=core.keep_gradient), rollout)
    assert min(metrics["grad_norm"], metrics["value_grad_norm"]) > 1e-2  # reported before clipping
    for name, part in new.opt_state.trace.items():
        norm = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(part)))
        np.testing.assert_allclose(norm, 1e-3, rtol=1e-5, err_msg=name)


def test_early_stop_leaves_out_the_later_minibatches(core, traced):
    """Plain gradient descent, so that exactly one update is theta - rate * gradient."""
    config, rollout = traced
    numbers = core.numbers(stop_kl=1e-6, learning_rate=0.5, value_learning_rate=0.25, max_grad_norm=1.0)
    state = core.state(config, numbers, tx=core.keep_gradient)
    new, metrics = core.step(config)(state, rollout)
    assert metrics["updates"] == 1
    assert metrics["kl_old"] < 1e-9  # means are over the updates made
    for name, rate in (("trunk", 0.5), ("value", 0.25)):
        once = jax.tree.map(lambda p, g, rate=rate: p - rate * g, state.params[name], new.opt_state.trace[name])
        equal(new.params[name], once, rtol=0, atol=1e-7)


def test_a_rollout_beyond_the_stop_changes_no_parameter(core, config):
    """logp_old of a random rollout is far off: no update is made, the multipliers still move, metrics stay finite."""
    state = core.state(config, core.numbers(stop_kl=1e-6))
    new, metrics = core.step(config)(state, core.rollout())
    assert metrics["updates"] == 0
    for name in ("params", "opt_state", "weights"):
        equal(getattr(new, name), getattr(state, name))
    assert (new.multipliers.value != state.multipliers.value).all()
    assert all(np.isfinite(value) for value in metrics.values())


# ---- what must not matter ----------------------------------------------------------------------------------------


def with_garbage(rollout, value):
    """The same rollout with `value` wherever no mask looks, and other tokens on padding."""
    mask, resp, applies = rollout.mask, rollout.resp_mask, rollout.applies
    token = resp[:, :, None] & np.ones((1, 1, 3), bool)
    both = resp[:, :, None] & applies[:, None, :]

    def fill(where, array):
        return np.where(where, array, np.asarray(value, np.float32))

    return rollout.replace(
        tokens=np.where(mask, rollout.tokens, np.arange(mask.size).reshape(mask.shape) % 64).astype(np.int32),
        logp_old=fill(resp, rollout.logp_old),
        logp_ref=fill(resp, rollout.logp_ref),
        ref_logps=fill(resp[:, :, None] & np.ones((1, 1, 64), bool), rollout.ref_logps),
        values_old=fill(both, rollout.values_old),
        objectives=fill(both[..., :3], rollout.objectives),
        constraints=fill(both[..., 3:] & token[..., :2], rollout.constraints),
        scores=fill(applies, rollout.scores),
        score_weights=fill(applies, rollout.score_weights),
    )


@pytest.mark.parametrize("value", [1e30, -1e30, -50.0])
@pytest.mark.parametrize("kl", ["full", "k3"])
def test_padding_and_streams_that_do_not_apply_change_no_number(core, kl, value):
    config = core.config(epochs=EPOCHS) if kl == "full" else core.config(kl=kl, kl_controller="adaptive")
    rollout, state = core.rollout(), core.state(config)
    rollout = rollout.replace(resp_mask=rollout.resp_mask & (np.arange(16) != 5)[:, None])  # and one row is empty
    expected = core.step(config)(state, rollout)
    found = core.step(config)(state, with_garbage(rollout, value))
    equal(found, expected)
    assert all(np.isfinite(value) for value in found[1].values())


def test_the_order_of_sequences_within_a_minibatch_does_not_matter(core, config):
    """Minibatches are strided: row i belongs to minibatch i mod 2, and may move to any other row of it."""
    rng = np.random.default_rng(0)
    order = np.arange(16).reshape(8, 2)
    order = np.stack([rng.permutation(order[:, number]) for number in range(2)], axis=1).reshape(-1)
    rollout, state = core.rollout(), core.state(config)
    one = core.step(config)(state, rollout)
    two = core.step(config)(state, jax.tree.map(lambda x: x[order], rollout))
    equal(two, one, rtol=1e-5, atol=1e-6)


def test_a_stream_that_applies_nowhere_contributes_nothing(core, config):
    """fluency (objective 1) and success (constraint 1): no loss, no gradient, nothing of their state moves."""
    state, _ = core.step(config)(core.state(config), core.rollout(1))
    rollout = core.rollout()
    rollout.applies[:, [1, 4]] = False
    new, metrics = core.step(config)(state, rollout)
    for name in ("fluency", "success"):
        for metric in ("J", "stream_loss", "grad_norm", "share", "clip_fraction", "explained_variance"):
            assert metrics[f"{metric}/{name}"] == 0, (metric, name)
    kept = ("score_ema", "score_initial", "score_seen", "running_sigma", "value_scale", "value_seen")
    for name in kept:
        for index in (1, 4) if getattr(state, name).shape == (5,) else (1,):
            assert getattr(new, name)[index] == getattr(state, name)[index], name
    np.testing.assert_allclose(new.weights.weights[1], state.weights.weights[1], rtol=1e-6)
    equal(*(jax.tree.map(lambda x: x[1], s.multipliers) for s in (new, state)))
    assert new.multipliers.value[0] != state.multipliers.value[0]


def test_scales_of_the_critic_by_hand(core, config):
    """The first measured std of the returns is adopted as the critic's unit, later ones are smoothed by 0.9."""
    rollout = core.rollout()
    constraints = np.zeros_like(rollout.constraints)
    for row, length in enumerate(rollout.resp_mask.sum(1)):
        constraints[row, length - 1, 0] = 4.0 if row % 2 else 0.0
    rollout = rollout.replace(
        constraints=constraints, values_old=np.zeros_like(rollout.values_old), applies=np.ones((16, 5), bool)
    )
    # Monte Carlo returns: every valid token of a row has the row's reward.
    tokens = rollout.resp_mask.sum(1)
    share = tokens[1::2].sum() / tokens.sum()
    spread = 4.0 * np.sqrt(share * (1 - share))
    first, _ = core.step(config)(core.state(config), rollout)
    np.testing.assert_allclose([first.value_scale[3], first.running_sigma[3]], spread, rtol=1e-5)
    second, _ = core.step(config)(first, rollout.replace(constraints=0.5 * constraints))
    np.testing.assert_allclose(second.value_scale[3], 0.9 * spread + 0.1 * spread / 2, rtol=1e-5)


def test_the_sampler_key_and_the_numbers_are_left_alone(core, config):
    state = core.state(config)
    new, _ = core.step(config)(state, core.rollout())
    equal((new.key, new.hyper), (state.key, state.hyper))


def test_adaptive_kl_coefficient_by_hand(core):
    """beta <- beta (1 + gain clip(KL / target - 1, -0.2, 0.2)): far above the target it grows by 0.1 * 0.2."""
    config = core.config(kl="k3", kl_controller="adaptive")
    numbers = core.numbers(kl_coef=0.5, kl_target=1e-3, kl_gain=0.1)
    new, metrics = core.step(config)(core.state(config, numbers), core.rollout())
    np.testing.assert_allclose([new.kl_coef, metrics["kl_coef"]], 0.5 * 1.02, rtol=1e-6)


# ---- structure and errors ----------------------------------------------------------------------------------------


def same(x):
    return x


@pytest.mark.parametrize(
    ("streams", "changes", "model"),
    [
        ({"objectives": ("likeness",), "constraints": ()}, {}, {}),
        ({"objectives": ("likeness",), "constraints": ("inform",)}, {"norm_at": "all"}, {"tied": False}),
        (None, {"minibatches": 4}, {"critic": CriticConfig(kind="shared"), "dtype": "bfloat16", "remat": "full"}),
    ],
    ids=["no constraint", "untied head", "shared critic in bfloat16"],
)
def test_other_structures_keep_every_shape_and_type(core, streams, changes, model):
    streams = streams or core.streams
    config = core.config(**streams, **changes)
    thresholds = dict.fromkeys(config.constraints, 0.5)
    model = core.model(len(config.streams), **model)
    state = core.state(config, core.numbers(thresholds=thresholds), model=model)
    new, metrics = jax.eval_shape(partial(train_step, config=config), state, core.rollout(streams=streams))
    # Weak types too: a leaf that changes its type compiles the step a second time.
    before, after = (
        jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), s) for s in (jax.eval_shape(same, state), new)
    )
    assert before == after
    assert all(value.shape == () and value.dtype == jnp.float32 for value in metrics.values())


def refused(core, rollout, message, **changes):
    config = core.config(**changes)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(partial(train_step, config=config), core.state(config), rollout)


@pytest.mark.parametrize(
    ("field", "shape"),
    [
        ("tokens", (16, 12)),
        ("context_mask", (15, 6)),
        ("logp_old", (16, 4)),
        ("logp_ref", (16, 6)),
        ("ref_logps", (16, 4, 64)),
        ("values_old", (16, 5, 4)),
        ("objectives", (16, 5, 2)),
        ("constraints", (16, 5, 3)),
        ("applies", (16, 3)),
        ("scores", (16, 3)),
        ("score_weights", (16,)),
        ("group", (15,)),
    ],
)
def test_a_wrong_shape_names_the_field(core, field, shape):
    rollout = core.rollout().replace(**{field: np.zeros(shape, np.int32 if field == "tokens" else np.float32)})
    refused(core, rollout, rf"rollout\.{field} has shape {re.escape(str(shape))}, expected \(16,")


@pytest.mark.parametrize(("kl", "field"), [("full", "ref_logps"), ("k2", "logp_ref"), ("k3", "logp_ref")])
def test_a_missing_reference_is_named(core, kl, field):
    refused(core, core.rollout().replace(**{field: None}), rf"step\.kl = {kl} needs rollout\.{field}", kl=kl)


def test_sequences_must_divide_into_minibatches(core):
    refused(core, core.rollout(), r"16 sequences .* step\.minibatches = 3", minibatches=3)


def test_every_metric_is_documented(core, config):
    """docs/metrics.md names every scalar of the step, with <stream>, <objective> and <constraint> for the names."""
    text = (Path(__file__).parent.parent / "docs" / "metrics.md").read_text()
    documented = set(re.findall(r"^\| `([^`]+)`", text, flags=re.MULTILINE))
    _, metrics = jax.eval_shape(partial(train_step, config=config), core.state(config), core.rollout())

    def generic(metric):
        head, *names = metric.split("/")
        if head in ("weight", "deficit"):
            return f"{head}/<objective>"
        if head in ("constraint", "multiplier", "multiplier_kkt"):
            return "/".join([head, "<constraint>", *names[1:]])
        return "/".join([head, *["<stream>"] * len(names)])

    assert {generic(metric) for metric in metrics} - documented == set()
