"""What every experiment can be told: where a run lies, on which devices, its models, stages and the step."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from morejax.config import StepConfig, StepNumbers
from morejax.experiments.shared.methods import Method, check_rollout
from morejax.models.actor_critic import CriticConfig
from morejax.models.decoder_config import DecoderConfig
from morejax.optimizers import Name, optimizer
from morejax.sharding import parse_mesh
from morejax.training.language_model import LanguageModelConfig
from morejax.training.ppo_config import PPOConfig
from morejax.training.reward_heads import RewardHeadConfig

FIRST_READ = {
    "scaffold": "scaffold",
    "reward": "reward_heads",
    "ppo": "ppo",
    "optimizer": "ppo",
    "weight_decay": "ppo",
    "step": "ppo",
    "numbers": "ppo",
    "critic": "ppo",
    "method": "ppo",
    "mixed_weight": "ppo",
    "threshold_margin": "ppo",
}
"""Entries that the first stages do not read, and the first stage that does."""


@dataclass(frozen=True)
class ExperimentConfig:
    """Flags that the experiments share; each adds its corpus, its stages and its presets."""

    preset: str = "demo"
    """Where the other fields' defaults come from."""
    out: Path | None = None
    """Folder of the run; default runs/<experiment>/, and there one named by preset, method and seed."""
    resume: bool = False
    """Continue the run in --out from its last checkpoint."""
    method: Method = "more"
    """more: constraints and adaptive weights; mixed: all streams in one weighted sum; fixed: constraints, fixed
    objective weights; unconstrained: adaptive weights, no constraints; gdpo: a weighted sum of streams normalised in
    groups of replies, no critic; supervised: no PPO."""
    seed: int = 0
    """Seed of initialisation, orders and sampling."""
    devices: int | None = None
    """Devices to use, data-parallel; 0 takes all there are. The short form of --mesh data=N. Default: 1."""
    mesh: str = ""
    """Devices as axes, e.g. data=8,fsdp=4,tensor=2: sequences are cut along data and fsdp, parameters, optimizer and
    models along fsdp and tensor. All devices there are; one size may be -1, the rest of them."""
    model: DecoderConfig = field(default_factory=DecoderConfig)
    """The decoder; its vocabulary is set by the task."""
    critic: CriticConfig = field(default_factory=CriticConfig)
    """The critic."""
    supervised: LanguageModelConfig = field(default_factory=LanguageModelConfig)
    """Supervised stage."""
    scaffold: LanguageModelConfig = field(default_factory=LanguageModelConfig)
    """Scaffold stage, which learns to write the reasoning before the reply; starts from the supervised parameters."""
    reward: RewardHeadConfig = field(default_factory=RewardHeadConfig)
    """Naturalness head."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    """The loop around the step. --ppo.turns S rows answer S / --ppo.samples turns of the corpus."""
    optimizer: Name = "adam"
    """Of PPO. Low on memory: adafactor, lion, adam_bf16 (its first moment in bfloat16), muon, sgd."""
    weight_decay: float = 0.0
    """Of PPO, decoupled (AdamW)."""
    step: StepConfig = field(default_factory=StepConfig)
    """The structure of the step. --method mixed sets its clip, weights, multipliers and mix_norm, fixed its weights,
    unconstrained its multipliers, gdpo its baseline, adv_norm, multipliers and weights (and --critic.kind none and at
    least 4 --ppo.samples)."""
    numbers: StepNumbers = field(default_factory=StepNumbers)
    """The step's numbers. A constraint without a threshold gets the scaffold's score minus --threshold-margin."""
    threshold_margin: float = 0.01
    """How far below the scaffold's own score a threshold lies that is not given."""
    mixed_weight: float = 0.25
    """Weight of every constraint stream under --method mixed and gdpo, the objectives together having 1."""
    samples: int = 20
    """Dialogues shown in the report."""

    def __post_init__(self) -> None:
        optimizer(self.optimizer, self.weight_decay)  # refuses what it does not know
        if self.devices is not None and self.devices < 0:
            raise ValueError(f"--devices must be 0 (all) or more, not {self.devices}")
        if self.mesh:
            if self.devices is not None:
                raise ValueError(f"--devices {self.devices} is short for --mesh data={self.devices}: give one of them")
            parse_mesh(self.mesh)
        check_rollout(self)


def check_stages(stages: tuple[str, ...], known: tuple[str, ...]) -> None:
    """Refuse stages that the experiment does not have.

    Raises:
        ValueError: there is one; names the flag.
    """
    unknown = [stage for stage in stages if stage not in known]
    if unknown:
        raise ValueError(f"--stages: {', '.join(unknown)} is not one of {', '.join(known)}")


def preset_of(name: str, makers: dict[str, Any]) -> Any:
    """The configuration that a preset stands for.

    Raises:
        ValueError: no preset has this name.
    """
    if name not in makers:
        raise ValueError(f"--preset must be one of {', '.join(makers)}, not {name!r}")
    return makers[name]()
