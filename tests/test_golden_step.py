"""The compiled float32 step against a slow float64 one in plain NumPy: every state and every metric, over three steps.

Three steps of 2 epochs x 2 minibatches (12 optimizer updates) move every running mean, scale and controller at least
twice. The rollouts hold replies of all lengths, streams that apply here and there, one that applies nowhere in one of
the rollouts, and NaN on everything that a mask hides (the NumPy step sees 0 there).
"""

from __future__ import annotations

import sys
from functools import cache, partial
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from morejax.config import StepConfig, StepNumbers
from morejax.rollout import Rollout
from morejax.state import init_state
from morejax.step import train_step

sys.path.append(str(Path(__file__).parent))  # pytest's importlib mode puts no test directory on the path
import numpy_step
import numpy_updates

OBJECTIVES, CONSTRAINTS = ("likeness", "fluency", "faithful"), ("inform", "success")
SEQUENCES, CONTEXT, RESPONSE, VOCAB, WIDTH, STEPS = 8, 3, 4, 7, 4, 3

MAX_GRAD_NORM, MULTIPLIER_MAX = 0.6, 1.2

TOLERANCE = 1e-5
"""Float32 rounds by 6e-8. Through 12 updates, with sums of some 30 terms and Adam's division by small moments in each,
the two steps end 1e-7 to 4e-6 apart, in units of an array's largest entry. A mistake is larger: a decay, a
denominator, a swapped order or a forgotten mask moved some number by 5e-4 or more wherever one was planted."""
ADAM_TOLERANCE = 3e-5
"""With Adam-preconditioned norms: factors 1 / sqrt(v) span six orders of magnitude, and 8e-6 was seen."""

CONFIGS = {
    "default": {},
    "mixed": dict(clip="mixed", weights="fixed", kl="k2", kl_controller="adaptive", multipliers="clip",
                  entropy_bonus=True, adv_norm="center", mix_norm="sum_to_one", norm_at="last_layer", value_clip=False),
    "gdpo": dict(baseline="group_mean", adv_norm="group", kl="k3", multipliers="softplus", weights="inv_norm",
                 norm_at="all", loss_mean="sequence"),
    "rloo": dict(baseline="leave_one_out", kl="none", multipliers="exp", weights="gradnorm", norm_at="final_norm",
                 entropy_bonus=True, norm_every=0),
    "after": dict(adv_norm="after", kl_controller="multiplier", weights="dyn", norm_of="signal", mix_norm="none"),
    "kl_reward": dict(kl="k1_reward", kl_controller="adaptive", multipliers="sigmoid", weights="improve",
                      loss_mean="sequence"),
    "equality": dict(adv_norm="none", multipliers="tanh", weights="mgda", norm_at="all"),
    "switching": dict(multipliers="crpo", weights="pcgrad", kl="k2", norm_at="last_layer"),
    "hinge": dict(multipliers="hinge", weights="cagrad", norm_at="all", kl="k3", loss_mean="sequence"),
    "penalty": dict(baseline="group_mean", multipliers="fixed", weights="upgrad", norm_every=2, norm_at="all",
                    norm_space="adam"),
    "kl_constraint": dict(kl="k1_reward", kl_controller="multiplier", multipliers="softplus", weights="cv",
                          adv_norm="center"),
    "spread": dict(weights="var", loss_mean="sequence", adv_norm="after", norm_every=3),
    "forgotten": dict(weights="ctwa", mix_norm="sum_to_one", kl_controller="adaptive"),
    "signal": dict(norm_at="all", norm_of="signal", norm_space="adam", mix_norm="none", value_clip=False),
    "mixed_rloo": dict(clip="mixed", weights="fixed", baseline="leave_one_out", adv_norm="after", kl="k3",
                       loss_mean="sequence", multipliers="exp", kl_controller="multiplier"),
    "mixed_kl": dict(clip="mixed", weights="fixed", kl="k1_reward", adv_norm="none", loss_mean="sequence"),
    "lean_exact": dict(norm_at="all", norm_for="objectives", kl="k3", accumulation_steps=2),
    "lean_signal": dict(norm_for="objectives", norm_of="signal", accumulation_steps=4, norm_every=2),
    "exact_slices": dict(norm_at="all", kl="none", accumulation_steps=2, norm_every=2, weights="mgda"),
    "fixed_slices": dict(weights="fixed", kl="k2", accumulation_steps=2, norm_at="last_layer", loss_mean="sequence"),
    "mixed_slices": dict(clip="mixed", weights="fixed", norm_at="all", accumulation_steps=4, entropy_bonus=True),
}  # fmt: skip
NUMBERS = {
    "default": dict(multiplier_kd=3.0, multiplier_dead_band=0.4, decay_steps=2, weight_alpha=0.7,
                    multiplier_max=MULTIPLIER_MAX),
    "mixed": dict(dual_clip=1.3, entropy_coef=0.02),
    "gdpo": dict(stop_kl=0.025, weight_cap=0.4, objective_weights={"likeness": 2.0}),
    "rloo": dict(dual_clip=1.5, entropy_coef=0.05),
    "after": dict(kl_target=0.01),
    "kl_reward": dict(gamma_turn=0.8, stream_gamma_turn={"success": 1.0}, multiplier_init=0.4),
    "equality": dict(multiplier_init=0.3, multiplier_values={"success": -0.2}, warmup_steps=1),
    "switching": dict(multiplier_tolerance=0.05),
    "kl_constraint": dict(kl_target=0.01, gamma=0.9, stream_gae_lambda={"kl": 0.5}),
    "spread": dict(stop_kl=0.035, weight_power=2.0),
    "forgotten": dict(warmup_steps=1, weight_corr_target=0.9, sigma_floor=0.95, weight_cap=0.36),
    "mixed_kl": dict(gamma_turn=0.5, dual_clip=2.0),
    "mixed_slices": dict(entropy_coef=0.03),
}  # fmt: skip
COMMON = dict(
    learning_rate=0.02, value_learning_rate=0.03, max_grad_norm=MAX_GRAD_NORM, warmup_steps=0, stop_kl=1e9,
    clip_low=0.15, clip_high=0.25, clip_value=0.2, gamma=0.95, stream_gamma={"fluency": 0.8}, gae_lambda=0.9,
    stream_gae_lambda={"inform": 0.6}, kl_coef=0.2, score_ema=0.6, targets={"likeness": 0.9, "fluency": 0.7},
    thresholds={"inform": 0.6, "success": 0.45}, multiplier_lr=0.5, multiplier_ki=0.3, multiplier_ema=0.7,
    weight_ema=0.5, weight_lr=0.3,
)  # fmt: skip


def parameter(value):
    return nnx.Param(jnp.asarray(value, jnp.float32))


class Trunk(nnx.Module):
    def __init__(self, embedding, kernel):
        self.embedding, self.kernel = parameter(embedding), parameter(kernel)


class Linear(nnx.Module):
    def __init__(self, kernel, bias=None):
        self.kernel = parameter(kernel)
        self.bias = None if bias is None else parameter(bias)


class Model(nnx.Module):
    """The model of `numpy_updates.hidden_states`, a head and a linear critic, as `train_step` calls them."""

    def __init__(self, params):
        self.trunk, self.policy = Trunk(**params["trunk"]), Linear(**params["policy"])
        self.value = Linear(**params["value"]) if "value" in params else None

    def hidden(self, tokens, mask):
        embedded = self.trunk.embedding[...][tokens] * mask[..., None]
        before = jnp.pad(embedded, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        return jnp.tanh(embedded + before @ self.trunk.kernel[...])

    def logits(self, hidden):
        return hidden @ self.policy.kernel[...]

    def values(self, tokens, mask, hidden):
        assert self.value is not None
        assert self.value.bias is not None
        return hidden @ self.value.kernel[...] + self.value.bias[...][None, None, :]


def build_params(config):
    rng, streams = np.random.default_rng(1), len(config.streams)
    params = {
        "trunk": {"embedding": rng.normal(size=(VOCAB, WIDTH)), "kernel": 0.5 * rng.normal(size=(WIDTH, WIDTH))},
        "policy": {"kernel": rng.normal(size=(WIDTH, VOCAB))},
    }
    if config.baseline == "critic":
        params["value"] = {"kernel": 0.3 * rng.normal(size=(WIDTH, streams)), "bias": 0.1 * rng.normal(size=streams)}
    return jax.tree.map(lambda x: x.astype(np.float32).astype(np.float64), params)


def build_rollout(seed, config, params):
    """Float32 numbers as float64, 0 wherever a mask hides them."""
    rng, streams = np.random.default_rng(seed), len(OBJECTIVES + CONSTRAINTS)
    lengths = np.append(rng.permutation([1, 2, 3, 4]), rng.integers(1, RESPONSE + 1, SEQUENCES - 4))
    resp_mask = np.arange(RESPONSE)[None] < lengths[:, None]
    context_mask = np.arange(CONTEXT)[None] >= rng.integers(0, CONTEXT, SEQUENCES)[:, None]
    tokens = rng.integers(0, VOCAB, (SEQUENCES, CONTEXT + RESPONSE)).astype(np.int32)
    mask = np.concatenate([context_mask, resp_mask], axis=1)
    hidden = numpy_updates.hidden_states(params, tokens, mask)[:, CONTEXT - 1 : -1]
    policy = numpy_updates.log_softmax(hidden @ params["policy"]["kernel"])
    ref_logps = numpy_updates.log_softmax(policy + 0.4 * rng.normal(size=policy.shape))
    chosen = tokens[:, CONTEXT:, None]
    applies = rng.random((SEQUENCES, streams)) < 0.75
    applies[:2] = True
    if seed == 1:
        applies[:, 1] = applies[:, 4] = False  # an objective and a constraint that this rollout does not test
    each = applies[:, None, :] & resp_mask[..., None]
    rewards = np.where(each, rng.normal(size=each.shape), 0.0)
    last = np.arange(RESPONSE)[None] == lengths[:, None] - 1
    rewards[..., [0, 3]] = np.where((each & last[..., None])[..., [0, 3]], rng.random((SEQUENCES, 1, 2)), 0.0)
    rollout = {
        "tokens": tokens,
        "context_mask": context_mask,
        "resp_mask": resp_mask,
        "logp_old": np.take_along_axis(policy, chosen, -1)[..., 0] + 0.15 * rng.normal(size=resp_mask.shape),
        "objectives": rewards[..., : len(OBJECTIVES)],
        "constraints": rewards[..., len(OBJECTIVES) :],
        "applies": applies,
        "scores": np.where(applies, rng.random(applies.shape), 0.0),
        "score_weights": np.where(applies, rng.uniform(0.5, 1.5, applies.shape), 0.0),
        "logp_ref": np.take_along_axis(ref_logps, chosen, -1)[..., 0],
        "ref_logps": ref_logps,
        "group": rng.permutation(np.repeat([0, 2, 5], [3, 3, 2])).astype(np.int32),
    }
    if config.baseline == "critic":
        rollout["values_old"] = 0.5 * rng.normal(size=(*resp_mask.shape, len(config.streams)))
        rollout["values_old"][~resp_mask] = 0.0
    if config.kl == "k1_reward":
        rollout |= {"dialogue": np.array([3, 3, 3, 1, 1, 6, 6, 6], np.int32)}
        rollout |= {"turn": np.array([0, 1, 3, 2, 0, 5, 4, 7], np.int32)}
    if config.adv_norm == "none":  # J from the rewards, all sequences alike
        del rollout["scores"], rollout["score_weights"]
    return {name: x.astype(np.float32).astype(float) if x.dtype == float else x for name, x in rollout.items()}


def hide(rollout):
    """The same for the compiled step, with NaN where nothing may be read."""
    out, reply, applies = dict(rollout), rollout["resp_mask"], rollout["applies"]
    split = len(OBJECTIVES)
    shown = {
        "logp_old": reply,
        "logp_ref": reply,
        "ref_logps": reply[..., None],
        "values_old": reply[..., None],
        "objectives": reply[..., None] & applies[:, None, :split],
        "constraints": reply[..., None] & applies[:, None, split:],
        "scores": applies,
        "score_weights": applies,
    }
    for name in shown.keys() & rollout.keys():
        out[name] = np.where(shown[name], rollout[name], np.nan)
    return Rollout(**{k: jnp.asarray(x, jnp.float32 if x.dtype == float else x.dtype) for k, x in out.items()})


def setting(name):
    config = StepConfig(objectives=OBJECTIVES, constraints=CONSTRAINTS, epochs=2, minibatches=2, **CONFIGS[name])
    return config, StepNumbers(**COMMON | NUMBERS.get(name, {}))


@cache
def slow_run(name):
    """Parameters at the start and, for every step, rollout, state after it and metrics."""
    config, numbers = setting(name)
    params = build_params(config)
    state, steps = numpy_step.start(params, config, numbers), []
    for seed in range(STEPS):
        rollout = build_rollout(seed, config, params)
        state, metrics = numpy_step.train_step(state, rollout, config, numbers)
        steps.append((rollout, state, metrics))
    return params, steps


def state_arrays(state):
    """Everything in a slow state, by name."""
    return dict(numpy_updates.flatten({name: value for name, value in state.items() if name != "step"}))


def same_in(state, path):
    """The array of the compiled step's state that a slow state has under this path."""
    first, *rest = path
    if first == "adam":
        state, rest = state.opt_state, rest
    elif rest:
        state = getattr(state, first)
    else:
        rest = [first]
    for name in rest:
        state = state[name] if isinstance(state, dict) else getattr(state, name)
    return np.asarray(state, np.float64)


def deviations(slow, expected, fast, metrics):
    """Distance of every array, in units of its largest entry, and of every metric, in units of it and of 1."""
    out = {}
    for path, value in state_arrays(slow).items():
        gap = np.abs(np.asarray(value, np.float64) - same_in(fast, path)).max()
        out["/".join(path)] = gap / max(np.abs(value).max(), 1e-30)
    for name, value in expected.items():
        out[name] = abs(value - float(metrics[name])) / (1 + abs(value))
    return out


@pytest.mark.parametrize("name", CONFIGS)
def test_step_equals_the_slow_one(core, name):
    equals_the_slow_one(name, core.fast_compile())


def test_step_as_users_compile_it_equals_the_slow_one(core):
    """All of XLA's optimisations, which other tests do without (see conftest.py)."""
    equals_the_slow_one("default", core.full_compile())


def equals_the_slow_one(name, options):
    config, numbers = setting(name)
    params, steps = slow_run(name)
    state = init_state(Model(params), config, numbers)
    step = jax.jit(partial(train_step, config=config), compiler_options=options)
    tolerance = ADAM_TOLERANCE if config.norm_space == "adam" else TOLERANCE
    for number, (rollout, slow, expected) in enumerate(steps):
        state, metrics = step(state, hide(rollout))
        assert expected.keys() == metrics.keys()
        assert int(state.step) == slow["step"] == number + 1
        # Not `> tolerance`: a NaN is no agreement.
        wrong = {key: gap for key, gap in deviations(slow, expected, state, metrics).items() if not gap <= tolerance}
        assert not wrong, f"step {number}: {wrong}"


def test_every_variant_has_a_golden_run():
    configs = [setting(name)[0] for name in CONFIGS]
    for field, hint in get_type_hints(StepConfig).items():
        choices = get_args(hint) if get_origin(hint) is Literal else {bool: (True, False)}.get(hint, ())
        assert set(choices) <= {getattr(config, field) for config in configs}, field
    assert {config.norm_every for config in configs} == {0, 1, 2, 3}
    assert {config.accumulation_steps for config in configs} == {1, 2, 4}
    assert len(CONFIGS) >= 12


def test_golden_runs_reach_every_branch():
    """A run that never clips, stops, caps or switches would compare nothing but the easy path."""

    def logged(name, metric):
        return [float(metrics[metric]) for _, _, metrics in slow_run(name)[1]]

    assert all(0.02 < share < 0.5 for name in CONFIGS for share in logged(name, "clip_fraction"))
    assert all(any(0 < made < 4 for made in logged(name, "updates")) for name in ("spread", "gdpo"))
    assert {0.0, 1.0} == set(logged("switching", "multiplier/inform"))
    assert max(logged("default", "multiplier/inform")) == MULTIPLIER_MAX
    assert min(logged("equality", "multiplier/success")) < 0 < min(logged("equality", "multiplier/inform"))
    assert len(set(logged("after", "kl_coef"))) == STEPS
    lengths = [norm for name in CONFIGS for norm in logged(name, "grad_norm")]
    assert min(lengths) < MAX_GRAD_NORM < max(lengths)
