"""Gradients and Gram matrices of the step against `jax.grad` of losses written out plainly."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from morejax.collectives import psum
from morejax.gradients import (
    adam_preconditioner,
    combine_rows,
    rows_all,
    rows_final_norm,
    rows_last_layer,
    rows_virtual,
    signal_gram,
    split_halves,
)
from morejax.gradients import (
    gram as gram_of,
)
from morejax.models import merge

LOW, HIGH, CLIP_VALUE, GAMMA, LAMBDA = 0.2, 0.3, 0.4, 0.95, 0.9
BETA, ENTROPY = 0.3, 0.05

VARIANTS = {
    "full": {"kl": "full", "weights": "inv_norm"},
    "k2": {"kl": "k2", "weights": "gradnorm_cf", "norm_at": "all", "adv_norm": "center"},
    "k3": {"kl": "k3", "weights": "inv_norm", "mix_norm": "sum_to_one", "value_clip": False},
    "none": {"kl": "none", "weights": "fixed", "mix_norm": "none", "adv_norm": "none"},
    "mixed": {"kl": "full", "weights": "fixed", "clip": "mixed"},
    "final norm": {"kl": "full", "weights": "inv_norm", "norm_at": "final_norm"},
    "last layer": {"kl": "full", "weights": "inv_norm", "norm_at": "last_layer", "tied": False},
}


def advantages_by_hand(rollout):
    """GAE of every stream in plain loops: A_t = r_t + gamma V_{t+1} - V_t + gamma lambda A_{t+1}."""
    rewards = np.concatenate([rollout.objectives, rollout.constraints], axis=-1).astype(np.float64)
    advantages = np.zeros_like(rewards)
    for s in range(rewards.shape[0]):
        length = int(rollout.resp_mask[s].sum())
        for h in range(rewards.shape[2]):
            later, next_value = 0.0, 0.0
            for t in reversed(range(length)):
                reward = rewards[s, t, h] if rollout.applies[s, h] else 0.0
                later = reward + GAMMA * next_value - rollout.values_old[s, t, h] + GAMMA * LAMBDA * later
                next_value = rollout.values_old[s, t, h]
                advantages[s, t, h] = later
    return advantages, advantages + rollout.values_old


def learning_signal(rollout, adv_norm):
    """Normalised advantages, scaled returns and old values of the first step, token counts; all f64."""
    advantages, returns = advantages_by_hand(rollout)
    valid = rollout.resp_mask[:, :, None] & rollout.applies[:, None, :]
    for h in range(advantages.shape[-1]):
        inside = advantages[..., h][valid[..., h]]
        if adv_norm != "none":
            advantages[..., h] -= inside.mean()
        if adv_norm == "stream":
            advantages[..., h] /= inside.std()
    scale = np.array([returns[..., h][valid[..., h]].std() for h in range(returns.shape[-1])])
    return SimpleNamespace(
        valid=valid, advantages=advantages, returns=returns / scale, values_old=rollout.values_old / scale
    )


def rows(tree, number, count):
    """Every `count`-th row from `number` on: the strided minibatch."""
    return jax.tree.map(
        lambda x: jnp.asarray(x[number::count], jnp.float32 if x.dtype == np.float64 else x.dtype), tree
    )


def reference_losses(state, config, rollout, number):
    """Functions of the parameters for one minibatch: each stream's surrogate, and everything but the policy's part."""
    signal = learning_signal(rollout, config.adv_norm)
    count = config.minibatches
    stream_tokens = jnp.asarray(signal.valid.sum((0, 1)) / count, jnp.float32)
    tokens_per_minibatch = rollout.resp_mask.sum() / count
    part, batch = rows(vars(signal), number, count), rows(rollout, number, count)
    context = batch.context_mask.shape[1]
    response = batch.tokens[:, context:]

    def forward(params, layer):
        model = merge(state.graphdef, params)
        hidden = model.hidden(batch.tokens, batch.mask)
        last = hidden[:, context - 1 : -1] * layer["gain"][None, None] + layer["bias"][None, None]
        logps = jax.nn.log_softmax(model.logits(last @ layer["matrix"]))
        return model, hidden, logps, jnp.take_along_axis(logps, response[..., None], -1)[..., 0]

    def surrogates(params, layer, mix=None):
        """f32[H] with the clip of each stream, or one number with one clip on the mixture."""
        logp = forward(params, layer)[3]
        rho = jnp.where(batch.resp_mask, jnp.exp(logp - batch.logp_old), 1.0)[..., None]
        terms = jnp.where(part["valid"], part["advantages"], 0.0) / stream_tokens[None, None]
        if mix is not None:
            terms = (terms * mix[None, None]).sum(-1, keepdims=True)
        return jnp.minimum(rho * terms, jnp.clip(rho, 1 - LOW, 1 + HIGH) * terms).sum((0, 1))

    def other(params, layer):
        model, hidden, logps, logp = forward(params, layer)
        log_ratio = batch.logp_ref - logp
        kl = {
            "full": (jnp.exp(logps) * (logps - batch.ref_logps)).sum(-1),
            "k2": 0.5 * log_ratio**2,
            "k3": jnp.exp(log_ratio) - 1 - log_ratio,
            "none": jnp.zeros_like(logp),
        }[config.kl]
        entropy = -(jnp.exp(logps) * logps).sum(-1)
        values = model.values(batch.tokens, batch.mask, hidden)[:, context - 1 : -1]
        near = part["values_old"] + jnp.clip(values - part["values_old"], -CLIP_VALUE, CLIP_VALUE)
        error = (values - part["returns"]) ** 2
        if config.value_clip:
            error = jnp.maximum(error, (near - part["returns"]) ** 2)
        value_loss = (jnp.where(part["valid"], 0.5 * error, 0.0) / stream_tokens[None, None]).sum()
        per_token = jnp.where(batch.resp_mask, BETA * kl - ENTROPY * entropy, 0.0)
        return per_token.sum() / tokens_per_minibatch + value_loss

    return surrogates, other


# What the cheap norms look at, put before the head; as it stands it changes nothing.
PROBE = {"matrix": jnp.eye(16), "gain": jnp.ones(16), "bias": jnp.zeros(16)}


def mix_by_hand(weights, multipliers, mix_norm):
    scale = {"one_plus_lambda": 1 + multipliers.sum(), "sum_to_one": weights.sum() + multipliers.sum(), "none": 1.0}
    return jnp.concatenate([weights, multipliers]) / scale[mix_norm]


@pytest.fixture(scope="module")
def run(core):
    """One step of a variant with learning rate 0, so that both minibatches see the parameters of the start."""

    def go(name):
        variant = dict(VARIANTS[name])
        model = core.model(tied=variant.pop("tied", True))
        config = core.config(entropy_bonus=True, **variant)
        numbers = core.numbers(
            **{"learning_rate": 0.0, "value_learning_rate": 0.0, "max_grad_norm": 1e9, "weight_ema": 0.0},
            **{"clip_low": LOW, "clip_high": HIGH, "clip_value": CLIP_VALUE, "gamma": GAMMA, "gae_lambda": LAMBDA},
            **{"kl_coef": BETA, "entropy_coef": ENTROPY, "objective_weights": {"fluency": 3.0}},
        )
        state, rollout = core.state(config, numbers, tx=core.keep_gradient, model=model), core.rollout()
        new, metrics = core.step(config)(state, rollout)
        return SimpleNamespace(config=config, state=state, rollout=rollout, new=new, metrics=metrics)

    return go


@pytest.mark.parametrize("name", VARIANTS)
def test_combined_gradient_is_that_of_the_written_out_loss(core, run, name):
    """L = -sum_i a_i mean min(rho A, clip(rho) A) + beta KL - c H + value loss, on the last minibatch."""
    step = run(name)
    config = step.config
    surrogates, other = reference_losses(step.state, config, step.rollout, config.minibatches - 1)
    mix = mix_by_hand(step.new.weights.weights, step.new.multipliers.value, config.mix_norm)

    def loss(params):
        if config.clip == "mixed":
            return other(params, PROBE) - surrogates(params, PROBE, mix)[0]
        return other(params, PROBE) - (mix * surrogates(params, PROBE)).sum()

    expected = jax.jit(jax.grad(loss), compiler_options=core.fast_compile())(step.state.params)
    # Something is clipped, and the weights have left the start: the test would notice their absence.
    assert step.metrics["clip_fraction"] > 0.05
    if config.weights != "fixed":
        assert np.abs(step.new.weights.weights - step.state.weights.weights).max() > 0.005
    for (path, leaf), found in zip(
        jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(step.new.opt_state.trace), strict=True
    ):
        scale = max(float(jnp.abs(leaf).max()), 1e-2)
        np.testing.assert_allclose(found, leaf, atol=1e-5 * scale, rtol=0, err_msg=jax.tree_util.keystr(path))


def gram_of_metrics(config, metrics):
    """G_ij = n_i n_j cos_ij."""
    names = config.streams
    norms = np.array([metrics[f"grad_norm/{name}"] for name in names])
    cosine = np.eye(len(names))
    for i, one in enumerate(names):
        for j, two in enumerate(names[i + 1 :], i + 1):
            cosine[i, j] = cosine[j, i] = metrics[f"cosine/{one}/{two}"]
    return cosine * norms[:, None] * norms[None, :]


@pytest.mark.parametrize(
    ("name", "norm_at"),
    [("k2", "all"), ("full", "virtual"), ("final norm", "final_norm"), ("last layer", "last_layer")],
)
def test_gram_matrix_is_that_of_separate_gradients(core, run, name, norm_at):
    """One `jax.grad` a stream: of all parameters, the head, a matrix, or a gain and bias before it."""
    step = run(name)
    assert step.config.norm_at == norm_at
    params = step.state.params
    where = {
        "all": {name: part for name, part in params.items() if name != "value"},
        "last_layer": {"policy": params.get("policy")},
        "virtual": {"matrix": PROBE["matrix"]},
        "final_norm": {"gain": PROBE["gain"], "bias": PROBE["bias"]},
    }[norm_at]
    gram = 0.0
    for number in range(step.config.minibatches):
        surrogates, _ = reference_losses(step.state, step.config, step.rollout, number)

        def stream(part, index, surrogates=surrogates):
            at_probe = {name: leaf for name, leaf in part.items() if name in PROBE}
            at_params = {name: leaf for name, leaf in part.items() if name not in PROBE}
            return surrogates(params | at_params, PROBE | at_probe)[index]

        grad = jax.jit(jax.grad(stream), compiler_options=core.fast_compile())
        gradients = [
            np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(grad(where, index))]) for index in range(5)
        ]
        gram += np.array([[a @ b for b in gradients] for a in gradients]) / step.config.minibatches
    found = gram_of_metrics(step.config, step.metrics)
    np.testing.assert_allclose(found, gram, atol=1e-5 * np.abs(gram).max(), rtol=0)


def test_virtual_gram_by_hand():
    """One token, D = 2: u h^T = [[3, 4], [6, 8]] has squared norm 125; coefficients 1 and -2 scale it."""
    pulled, hidden = jnp.array([[[1.0, 2.0]]]), jnp.array([[[3.0, 4.0]]])
    gram = gram_of(rows_virtual(jnp.array([[[1.0, -2.0]]]), pulled, hidden))
    np.testing.assert_allclose(gram, [[125.0, -250.0], [-250.0, 500.0]], rtol=1e-6)


def test_virtual_gram_sums_over_tokens_before_the_product():
    """Two tokens with opposite coefficients and equal u and h cancel: the norm is of the sum, not a sum of norms."""
    pulled, hidden = jnp.ones((1, 2, 3)), jnp.ones((1, 2, 3))
    gram = gram_of(rows_virtual(jnp.array([[[1.0, 1.0], [-1.0, 1.0]]]), pulled, hidden))
    np.testing.assert_allclose(gram, [[0.0, 0.0], [0.0, 36.0]], atol=1e-6)


def test_all_gram_by_hand():
    """Gradients (c1 + c2, 3 c2) of a two-parameter model for the streams (1, 0) and (1, 2): (1, 0) and (3, 6)."""

    def pull(c):
        return {"a": c.sum()[None], "b": 3.0 * c[:, 1:].sum(1)}

    coefficients = jnp.array([[[1.0, 1.0], [0.0, 2.0]]])
    rows = rows_all(coefficients, pull)
    np.testing.assert_allclose(gram_of(rows), [[1.0, 3.0], [3.0, 45.0]])
    mixed = combine_rows(rows, jnp.array([2.0, 1.0]))
    np.testing.assert_allclose(mixed["a"], [5.0])
    np.testing.assert_allclose(mixed["b"], [6.0])
    scaled = gram_of(rows, preconditioner={"a": jnp.array([2.0]), "b": jnp.array([0.5])})
    np.testing.assert_allclose(scaled, [[4.0, 12.0], [12.0, 36.0 + 9.0]])


def test_last_layer_and_final_norm_by_hand():
    """One token: r = (1, -1), u = (2, 0), h = (3, 4). |r|^2 |h|^2 = 50; [u h, u] = (6, 0, 2, 0), squared 40."""
    c, h = jnp.array([[[1.0, -2.0]]]), jnp.array([[[3.0, 4.0]]])
    signs = np.array([[1.0, -2.0], [-2.0, 4.0]])
    np.testing.assert_allclose(gram_of(rows_last_layer(c, jnp.array([[[1.0, -1.0]]]), h)), 50 * signs, rtol=1e-6)
    np.testing.assert_allclose(gram_of(rows_final_norm(c, jnp.array([[[2.0, 0.0]]]), h)), 40 * signs, rtol=1e-6)


def test_adam_preconditioner_by_hand(core):
    """v = 4 and 1: factors 1 / (1 + eps) and 1 / (0.5 + eps), in units of the largest; 1 before any update."""
    tx = optax.scale_by_adam(b2=0.5)
    params = {"trunk": {"w": jnp.zeros(2)}, "value": {"w": jnp.zeros(1)}}
    state = tx.init(params)
    np.testing.assert_array_equal(adam_preconditioner(state, {"trunk": 0})["trunk"]["w"], [1.0, 1.0])
    gradient = {"trunk": {"w": jnp.array([np.sqrt(8.0), np.sqrt(2.0)])}, "value": {"w": jnp.full(1, 100.0)}}
    _, state = tx.update(gradient, state)
    found = adam_preconditioner(state, {"trunk": 0}, eps=0.0)
    assert set(found) == {"trunk"}
    np.testing.assert_allclose(found["trunk"]["w"], [1.0, 2.0], rtol=1e-6)
    with pytest.raises(ValueError, match="needs an optimizer with a second moment"):
        adam_preconditioner(optax.sgd(0.1).init(params), params)


def test_signal_gram_is_unbiased_for_the_squared_mean_gradient():
    """Gradients N(m, s^2) a sequence: 4 <a, b> over halves averages to |m|^2 n^2 / n^2, the total to more."""
    rng = np.random.default_rng(0)
    mean, rounds, sequences = np.array([0.3, -0.2]), 4000, 8
    samples = mean + rng.normal(size=(rounds, sequences, 2))
    half = jnp.arange(sequences) % 2 == 0

    def gram(sample):
        c = jnp.full((sequences, 1, 1), 1.0 / sequences)
        doubled = split_halves(c, half)
        rows = (doubled[:, 0, :, None] * sample[:, None, :]).sum(0)
        return signal_gram(rows @ rows.T)[0, 0]

    found = np.asarray(jax.vmap(gram)(jnp.asarray(samples, jnp.float32)))
    error = found.std() / np.sqrt(rounds)
    assert abs(found.mean() - mean @ mean) < 4 * error
    total = (samples.mean(1) ** 2).sum(-1).mean()
    assert total - mean @ mean > 10 * error


@pytest.mark.parametrize("kind", ["virtual", "all", "final_norm", "last_layer"])
def test_gram_over_devices_is_that_of_the_whole_batch(kind):
    """Sums over devices come before the products: the Gram of a sum is not the sum of the Grams."""
    rng = np.random.default_rng(0)
    c, u, h = (rng.normal(size=(16, 3, size)).astype(np.float32) for size in (4, 6, 6))

    def gram(c, u, h, axis_name=None):
        if kind == "all":
            rows = rows_all(c, lambda one: {"w": (one[..., None] * u * h).sum((0, 1))})
        else:
            rows = {"virtual": rows_virtual, "final_norm": rows_final_norm, "last_layer": rows_last_layer}[kind](
                c, u, h
            )
        return gram_of(psum(rows, axis_name))

    parts = [x.reshape(8, 2, *x.shape[1:]) for x in (c, u, h)]
    split = jax.pmap(lambda *x: gram(*x, axis_name="i"), axis_name="i")(*parts)
    np.testing.assert_allclose(split[0], gram(c, u, h), rtol=1e-4, atol=1e-4)
