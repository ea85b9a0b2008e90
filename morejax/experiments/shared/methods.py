"""What `--method` decides: how streams become one update, for MORE and for what it is compared with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, get_args

Method = Literal["more", "mixed", "fixed", "unconstrained", "gdpo", "supervised"]
METHODS: tuple[str, ...] = get_args(Method)


def apply_method(config: Any) -> Any:
    """An experiment's configuration with its method put where it is read.

    more: constraints and adaptive weights. mixed: all streams in one weighted sum, clipped once. fixed: constraints,
    fixed weights of the objectives. unconstrained: adaptive weights, no constraints. gdpo: a weighted sum of streams,
    each normalised in groups of replies to one prompt (GDPO, arXiv 2601.05242), without a critic. supervised: no PPO.

    Args:
        config: with `method`, `mixed_weight`, `step`, `numbers`, `critic`, `ppo` and `stages`.
    """
    step, numbers, critic, ppo = config.step, config.numbers, config.critic, config.ppo
    if config.method == "mixed":
        step = replace(step, clip="mixed", weights="fixed", multipliers="fixed", mix_norm="sum_to_one")
        numbers = replace(numbers, multiplier_init=config.mixed_weight)
    elif config.method == "gdpo":
        step = replace(step, baseline="group_mean", adv_norm="group", multipliers="fixed", weights="fixed")
        numbers = replace(numbers, multiplier_init=config.mixed_weight)
        critic, ppo = replace(critic, kind="none"), replace(ppo, samples=max(4, ppo.samples))
    elif config.method == "fixed":
        step = replace(step, weights="fixed")
    elif config.method == "unconstrained":
        step = replace(step, multipliers="fixed")
        numbers = replace(numbers, multiplier_init=0.0)
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
