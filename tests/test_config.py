"""Choices and numbers of the step: every wrong one is refused by the name of its flag."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args, get_origin, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from morejax import advantages, lagrange, losses, reweight
from morejax.config import (
    _CHOICES,
    Hyper,
    StepConfig,
    StepNumbers,
    hyper,
    initial_multipliers,
    initial_weights,
)

# What some choices cannot do without.
NEEDS = {"mixed": {"weights": "fixed"}, "group": {"baseline": "group_mean"}, "adam": {"norm_at": "all"}}


@pytest.mark.parametrize("field", _CHOICES)
def test_every_choice_is_checked_and_named(field):
    flag = f"--step.{field.replace('_', '-')} must be one of {', '.join(_CHOICES[field])}, not 'other'"
    with pytest.raises(ValueError, match=flag):
        StepConfig(**{field: "other"})
    for choice in _CHOICES[field]:
        assert getattr(StepConfig(**{field: choice} | NEEDS.get(choice, {})), field)


def test_the_choices_are_those_that_exist():
    assert set(_CHOICES["multipliers"]) == set(lagrange.RULES)
    assert set(_CHOICES["mix_norm"]) == set(lagrange.MIX_NORMS)
    assert set(_CHOICES["weights"]) == set(reweight.RULES)
    assert set(_CHOICES["adv_norm"]) == {*advantages.NORMALISATIONS, "group", "after"}
    assert set(_CHOICES["loss_mean"]) == set(losses.LOSS_MEANS)
    hints = get_type_hints(StepConfig)
    assert {name: get_args(hints[name]) for name in _CHOICES} == _CHOICES
    assert {name for name, hint in hints.items() if get_origin(hint) is Literal} == set(_CHOICES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": ()}, "--step.objectives must name at least one"),
        ({"objectives": ("a", "b"), "constraints": ("b",)}, "name a stream twice: b"),
        ({"epochs": 0}, "--step.epochs must be at least 1, not 0"),
        ({"accumulation_steps": 0}, "--step.accumulation-steps must be at least 1, not 0"),
        ({"minibatches": -1}, "--step.minibatches must be at least 1, not -1"),
        ({"clip": "mixed"}, "--step.clip mixed needs --step.weights fixed, not gradnorm_cf"),
        ({"kl": "none", "kl_controller": "adaptive"}, "--step.kl-controller adaptive steers nothing"),
        ({"kl": "none", "kl_controller": "multiplier"}, "--step.kl-controller multiplier .* --step.kl none"),
        ({"kl": "k1_reward", "objectives": ("kl",)}, "--step.kl k1_reward .* --step.objectives"),
        ({"kl": "k1_reward", "adv_norm": "after"}, "--step.kl k1_reward .* --step.adv-norm after"),
        (
            {"kl_controller": "multiplier", "multipliers": "crpo"},
            "--step.kl-controller multiplier .*--step.multipliers, and crpo",
        ),
        ({"adv_norm": "group"}, "--step.adv-norm group needs --step.baseline group_mean, not critic"),
        ({"multipliers": "crpo", "mix_norm": "none"}, "--step.multipliers crpo .* --step.mix-norm none"),
        ({"norm_space": "adam"}, "--step.norm-space adam needs --step.norm-at all, not virtual"),
        ({"norm_of": "signal", "weights": "mgda"}, "--step.norm-of signal .* --step.weights mgda"),
        ({"norm_every": -1}, "--step.norm-every must be 0 .*, not -1"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        StepConfig(**changes)


def test_a_config_is_a_static_argument():
    """Hashable, equal by value, frozen."""
    assert hash(StepConfig()) == hash(StepConfig())
    assert StepConfig() == StepConfig()
    assert StepConfig(epochs=2) != StepConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        StepConfig().epochs = 3
    assert StepConfig(objectives=("a",), constraints=("b", "c")).streams == ("a", "b", "c")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip_low": 20}, "--numbers.clip-low must be between 0 and 1, not 20"),
        ({"multiplier_ema": -0.1}, "--numbers.multiplier-ema must be between 0 and 1, not -0.1"),
        ({"learning_rate": -1e-4}, "--numbers.learning-rate must be at least 0, not -0.0001"),
        ({"stop_kl": float("nan")}, "--numbers.stop-kl must be at least 0, not nan"),
        ({"kl_target": 0.0}, "--numbers.kl-target must be at least 1e-08, not 0.0"),
    ],
)
def test_numbers_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        StepNumbers(**changes)


@pytest.fixture
def config(core):
    return core.config()


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"thresholds": {"inform": 0.5}}, "thresholds has no threshold for constraint success"),
        ({"thresholds": {"inform": 0.5, "success": 0.5, "fluency": 1}}, "thresholds: fluency is not one of inform, "),
        ({"objective_weights": {"inform": 1}}, "weights: inform is not one of likeness, fluency, faithful"),
        ({"targets": {"bleu": 1}}, "targets: bleu is not one of likeness"),
        ({"multiplier_values": {"slots": 1}}, "multiplier.values: slots is not one of inform, success"),
    ],
)
def test_numbers_of_unknown_streams_are_refused(core, config, numbers, message):
    with pytest.raises(ValueError, match="--numbers.*" + message):
        hyper(config, core.numbers(**numbers))


def test_numbers_stand_in_the_order_of_the_streams(core, config):
    numbers = core.numbers(
        thresholds={"success": 0.2, "inform": 0.1},
        targets={"faithful": 0.5},
        objective_weights={"fluency": 2.0},
        multiplier_values={"success": 3.0},
        gamma=0.9,
    )
    arrays = hyper(config, numbers)
    np.testing.assert_allclose(arrays.thresholds, [0.1, 0.2])
    np.testing.assert_allclose(arrays.targets, [1, 1, 0.5])
    np.testing.assert_allclose(arrays.gamma, [0.9] * 5)
    np.testing.assert_allclose(initial_weights(config, numbers), [0.25, 0.5, 0.25])
    np.testing.assert_allclose(initial_multipliers(config, numbers), [1, 3])


def test_an_entropy_coefficient_without_the_bonus_is_refused(core, config):
    with pytest.raises(ValueError, match=r"--numbers\.entropy-coef 0\.02 has no effect without --step\.entropy-bonus"):
        hyper(config, core.numbers(entropy_coef=0.02))


def test_every_number_reaches_the_arrays(core):
    """Each scalar of `StepNumbers`, doubled, changes the traced arrays or the initial state, and nothing is weak."""
    # Start values are kept in the state; of dual_clip 0 is infinity.
    elsewhere = {"kl_coef", "multiplier_init", "dual_clip"}
    config = core.config(entropy_bonus=True)
    before = jax.tree.leaves(hyper(config, core.numbers()))
    assert all(leaf.dtype == jnp.float32 and not leaf.weak_type for leaf in before)
    for field in dataclasses.fields(StepNumbers):
        value = getattr(StepNumbers(), field.name)
        if isinstance(value, dict) or field.name in elsewhere:
            continue
        value = getattr(core.numbers(), field.name)
        after = jax.tree.leaves(hyper(config, core.numbers(**{field.name: 0.5 * value + 0.3})))
        changed = [(a != b).any() for a, b in zip(after, before, strict=True)]
        assert sum(changed) == 1, field.name
    assert {field.name for field in dataclasses.fields(Hyper)} >= {"gains", "weighting", "thresholds", "targets"}
