"""Numbers of the PPO loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class PPOConfig:
    """The loop around the step."""

    iterations: int = 60
    """Rollouts, each followed by one train step."""
    turns: int = 256
    """S: rows of a rollout, filled with replies to the turns of whole dialogues: S / `--ppo.samples` turns."""
    samples: int = 1
    """Replies sampled to every turn: whole dialogues are sampled as often. Those to one turn are a group, which
    `--step.baseline` group_mean and leave_one_out need."""
    temperature: float = 1.0
    """What PPO starts from: policy and reference are the supervised model and the scaffold at this temperature (the
    final norm divided by it, once), and the policy samples from what it then is. Below 1 the replies that are judged
    are near the greedy ones that are used."""
    ref_context: Literal["reasoned", "direct"] = "reasoned"
    """The reference is the scaffold reading its acts, or the supervised model reading what the policy reads."""
    split: str = ""
    """Dialogues of MultiWOZ to sample from; empty takes `--fit` (and `gold_fit` alone where the corpus names one). The
    shop samples from train."""
    eval_every: int = 10
    """Iterations between two greedy evaluations on the split that choices are made on (`--select`; the shop's dev)."""
    eval_dialogues: int = 100
    """Dialogues of each such evaluation; 0 takes all."""
    checkpoint_every: int = 10
    """Iterations between two checkpoints."""
    keep: Literal["best", "last"] = "best"
    """Final policy: best Combined of these evaluations, or the last."""
    average: float = 0.0
    """Share of the iterations, the last ones, whose parameters are averaged: final policy and evaluations are their
    mean, replies go on being sampled from the policy itself. 0 averages nothing."""
    runs: int = 1
    """PPO runs of `--ppo.iterations` each, one after another and all from the same start, with dialogues and
    samples of their own. Final policy is the mean of what `--ppo.average` averages in all of them."""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"--ppo.samples must be at least 1, not {self.samples}")
        if not self.temperature > 0:
            raise ValueError(f"--ppo.temperature must be above 0, not {self.temperature}")
        if self.ref_context not in ("reasoned", "direct"):
            raise ValueError(f"--ppo.ref-context must be reasoned or direct, not {self.ref_context!r}")
        if not 0 <= self.average < 1:
            raise ValueError(f"--ppo.average must be at least 0 and below 1, not {self.average:g}")
        if self.runs < 1:
            raise ValueError(f"--ppo.runs must be at least 1, not {self.runs}")
        if self.runs > 1 and not self.average:
            raise ValueError(
                f"--ppo.runs {self.runs} averages the ends of its runs: --ppo.average must be above 0, not 0"
            )
