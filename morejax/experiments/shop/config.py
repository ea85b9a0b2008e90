"""Configuration and presets of the shop experiment."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from morejax.config import StepConfig, StepNumbers
from morejax.experiments.shared import config as shared
from morejax.experiments.shared.config import ExperimentConfig, check_stages, preset_of
from morejax.experiments.shared.methods import apply_method
from morejax.models.actor_critic import CriticConfig
from morejax.models.decoder_config import DecoderConfig
from morejax.tasks.shop.context import ContextConfig
from morejax.tasks.shop.ontology import FUNCTIONS
from morejax.training.language_model import LanguageModelConfig
from morejax.training.ppo_config import PPOConfig
from morejax.training.reward_heads import RewardHeadConfig

STAGES = ("generate", "supervised", "scaffold", "reward_heads", "ppo", "evaluate", "ab")
FIRST_READ = shared.FIRST_READ | {"on_device": "ppo", "ab": "ab"}
PRESETS = ("demo", "cpu")
OBJECTIVES = ("overlap", "fluency", "naturalness", "concision", "empathy")
CONSTRAINTS = FUNCTIONS


@dataclass(frozen=True)
class CorpusConfig:
    """Dialogues to generate; a pure function of these numbers."""

    seed: int = 0
    """Of the dialogues; runs with several --seed share them."""
    train: int = 1200
    """Dialogues to learn from, about three turns each."""
    dev: int = 100
    """Dialogues that thresholds are measured on."""
    test: int = 120
    """Dialogues to score."""
    held_out: int = 120
    """Dialogues to score under policy versions and with products that no other split has."""
    drills: int = 1
    """Reading drills (single fields of a case asked for, and given word for word) for each dialogue to learn from; the
    supervised stage sees them among the dialogues."""

    def __post_init__(self) -> None:
        for name in SPLIT_NAMES:
            if getattr(self, name) < 1:
                raise ValueError(f"--corpus.{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")
        if self.drills < 0:
            raise ValueError(f"--corpus.drills must be at least 0, not {self.drills}")


SPLIT_NAMES = ("train", "dev", "test", "held_out")


@dataclass(frozen=True)
class ABConfig:
    """The simulated A/B test."""

    dialogues: int = 2000
    """Dialogues of every arm, under each setting of the simulator."""
    days: int = 14
    """Simulated days."""
    seed: int = 0
    """Of customers and chance, which all arms share."""
    settings: tuple[str, ...] = ("patient", "wary")
    """Populations of simulated users."""
    split: str = "test"
    """Where customers, products and policies come from; held_out for versions that nothing was trained on."""
    scaffold: bool = False
    """An arm for the scaffold too, which writes its reasoning first."""

    def __post_init__(self) -> None:
        if self.days < 2 or self.dialogues < self.days:
            raise ValueError(
                f"--ab.dialogues {self.dialogues} must be at least --ab.days {self.days}, and that at least 2"
            )
        if self.split not in SPLIT_NAMES:
            raise ValueError(f"--ab.split must be one of {', '.join(SPLIT_NAMES)}, not {self.split!r}")


@dataclass(frozen=True)
class ShopConfig(ExperimentConfig):
    """Train a service agent for a simulated shop, and put it to an A/B test against simulated users."""

    preset: Literal["demo", "cpu"] = "demo"
    """Where the other fields' defaults come from: demo (minutes on 2 cores) or cpu (2 cores, hours)."""
    stages: tuple[str, ...] = STAGES
    """Stages to run, in order; finished ones of a resumed run are skipped."""
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    """Dialogues to generate."""
    # Long enough for what `context` is by default.
    model: DecoderConfig = field(default_factory=lambda: DecoderConfig(max_length=640))
    """The decoder; its vocabulary is set by the task."""
    context: ContextConfig = field(default_factory=ContextConfig)
    """What the model sees of a dialogue."""
    on_device: Literal["auto", "no"] = "auto"
    """auto: an iteration is one program on the device, where all streams can be computed there and turns stand on their
    own; no: rewards are computed on the host."""
    ab: ABConfig = field(default_factory=ABConfig)
    """The simulated A/B test at the end."""
    score: tuple[str, ...] = ()
    """Models that the stage evaluate scores, of supervised, scaffold and ppo; empty: all there are. Runs that branch
    from one backbone need not score its models each again."""

    def __post_init__(self) -> None:
        check_stages(self.stages, STAGES)
        unknown = sorted(set(self.score) - {"supervised", "scaffold", "ppo"})
        if unknown:
            raise ValueError(f"--score: {', '.join(unknown)} is not one of supervised, scaffold, ppo")
        super().__post_init__()
        _check_length(self.model, self.context)

    @property
    def run_dir(self) -> Path:
        """Folder of the run."""
        return self.out or Path("runs/shop") / f"{self.preset}-{self.method}-{self.seed}"


def _check_length(model: DecoderConfig, context: ContextConfig) -> None:
    # The reasoning stands between two markers of its own.
    needed = context.max_context + context.max_reasoning + 2 + context.max_reply
    if needed > model.max_length:
        raise ValueError(
            f"--model.max-length {model.max_length} does not hold --context.max-context {context.max_context}, "
            f"--context.max-reasoning {context.max_reasoning} with two markers and --context.max-reply "
            f"{context.max_reply}: expected at least {needed}"
        )


def resolve(config: ShopConfig) -> ShopConfig:
    """Put what --method decides where it is read."""
    return apply_method(config, preset(config.preset))


def preset(name: str) -> ShopConfig:
    """Defaults for a machine.

    demo: the whole pipeline and a small A/B test within 12 minutes on 2 cores.
    cpu: the real one within 2.5 hours on 2 cores.

    Raises:
        ValueError: another name.
    """
    return preset_of(name, {"demo": _demo, "cpu": _cpu})


def _streams(**more) -> StepConfig:
    return StepConfig(objectives=OBJECTIVES, constraints=CONSTRAINTS, **more)


def _decoder(*, max_length: int, layers: int) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=1088, max_length=max_length, layers=layers, width=128, heads=4, positions="rope", shift=True
    )


def _demo() -> ShopConfig:
    ppo = PPOConfig(temperature=0.5, keep="last")
    lm = LanguageModelConfig(epochs=1.7, tokens_per_batch=4096, bucket=64, optimizer="muon", checkpoint_every=500)
    return ShopConfig(
        preset="demo",
        corpus=CorpusConfig(train=5000, dev=80, test=80, held_out=80),
        model=_decoder(max_length=480, layers=2),
        critic=CriticConfig(kind="shared", hidden=64),
        context=ContextConfig(history=1, max_context=288, max_reasoning=112, max_reply=72),
        supervised=lm,
        scaffold=replace(lm, epochs=0.3, learning_rate=1e-3),
        reward=RewardHeadConfig(examples=500, held_out=200, steps=300),
        ppo=replace(ppo, iterations=30, turns=96, eval_every=15, eval_dialogues=40, checkpoint_every=10),
        step=_streams(epochs=2, minibatches=4),
        numbers=StepNumbers(learning_rate=5e-4, warmup_steps=2, multiplier_ema=0.8),
        ab=ABConfig(dialogues=280),
        samples=8,
    )


def _cpu() -> ShopConfig:
    ppo = PPOConfig(temperature=0.5, keep="last")
    lm = LanguageModelConfig(epochs=1.6, tokens_per_batch=4096, bucket=64, optimizer="muon")
    return ShopConfig(
        preset="cpu",
        corpus=CorpusConfig(train=12000, dev=250, test=400, held_out=400),
        model=_decoder(max_length=640, layers=3),
        critic=CriticConfig(kind="shared", hidden=128),
        context=ContextConfig(history=3, max_context=384, max_reasoning=128, max_reply=96),
        supervised=lm,
        scaffold=replace(lm, epochs=0.4, learning_rate=1e-3),
        reward=RewardHeadConfig(examples=3000, held_out=700),
        ppo=replace(ppo, iterations=24, turns=128, eval_every=12, eval_dialogues=100, checkpoint_every=6),
        step=_streams(epochs=2, minibatches=4),
        numbers=StepNumbers(learning_rate=3e-4, warmup_steps=3),
        ab=ABConfig(dialogues=2000),
    )
