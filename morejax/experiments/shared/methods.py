"""What `--method` decides: how streams become one update, for MORE and for what it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

Method = Literal["more", "mixed", "fixed", "unconstrained", "gdpo", "supervised"]
METHODS: tuple[str, ...] = get_args(Method)


_DECIDED: dict[str, dict[str, str]] = {
    "mixed": {"clip": "mixed", "weights": "fixed", "multipliers": "fixed", "mix_norm": "sum_to_one"},
    "gdpo": {"baseline": "group_mean", "adv_norm": "group", "multipliers": "fixed", "weights": "fixed"},
    "fixed": {"weights": "fixed"},
    "unconstrained": {"multipliers": "fixed"},
}
"""Entries of the step that a method is made of."""


def apply_method(config: Any, defaults: Any) -> Any:
    """An experiment's configuration with its method put where it is read.

    more: constraints and adaptive weights. mixed: all streams in one weighted sum, clipped once. fixed: constraints,
    fixed weights of the objectives. unconstrained: adaptive weights, no constraints. gdpo: a weighted sum of streams,
    each normalised in groups of at least 4 replies to one prompt (GDPO, arXiv 2601.05242), without a critic.
    supervised: no PPO.

    Args:
        config: with `method`, `mixed_weight`, `step`, `numbers`, `critic`, `ppo` and `stages`.
        defaults: the preset, whose `step` and `numbers` give way to the method.

    Raises:
        ValueError: a flag asks for something else than the method; names both.
    """
    step = _decide(config.step, defaults.step, "step", config.method, _DECIDED.get(config.method, {}))
    init = {"mixed": config.mixed_weight, "gdpo": config.mixed_weight, "unconstrained": 0.0}.get(config.method)
    numbers = config.numbers
    if init is not None:
        numbers = _decide(numbers, defaults.numbers, "numbers", config.method, {"multiplier_init": init})
    critic, ppo = config.critic, config.ppo
    if config.method == "gdpo":
        critic, ppo = replace(critic, kind="none"), replace(ppo, samples=max(4, ppo.samples))
    stages = tuple(s for s in config.stages if s != "ppo") if config.method == "supervised" else config.stages
    return replace(config, step=step, numbers=numbers, critic=critic, ppo=ppo, stages=stages)


def check_rollout(config: Any) -> None:
    """Refuse a step, a critic and rollouts that do not go together; names the flags.

    Raises:
        ValueError: they do not.
    """
    step, ppo, critic = config.step, config.ppo, config.critic
    if step.baseline != "critic" and ppo.samples < 2:
        raise ValueError(
            f"--step.baseline {step.baseline} compares the samples of one turn: --ppo.samples must be at least 2, "
            f"not {ppo.samples}"
        )
    if (step.baseline == "critic") == (critic.kind == "none"):
        wanted = "a critic" if step.baseline == "critic" else "--critic.kind none"
        raise ValueError(f"--step.baseline {step.baseline} needs {wanted}, not --critic.kind {critic.kind}")
    for flag, count in (("--step.minibatches", step.minibatches), ("--ppo.samples", ppo.samples)):
        if ppo.turns % count:
            raise ValueError(f"--ppo.turns {ppo.turns} must be a multiple of {flag} {count}")


def _decide(group: Any, preset: Any, name: str, method: str, decided: Mapping[str, Any]) -> Any:
    """Put a method's entries in; one that was given must be what the method makes it."""
    for entry, value in decided.items():
        given, default = getattr(group, entry), type(group).__dataclass_fields__[entry].default
        if given not in (default, getattr(preset, entry), value):
            flag = f"--{name}.{entry.replace('_', '-')}"
            raise ValueError(f"{flag} {given}: --method {method} makes it {value}; leave one of them out")
    return replace(group, **decided)
