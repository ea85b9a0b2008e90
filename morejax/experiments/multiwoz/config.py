"""Configuration and presets of the MultiWOZ experiment."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from morejax.config import StepConfig, StepNumbers
from morejax.experiments.shared import config as shared
from morejax.experiments.shared.config import ExperimentConfig, check_stages, preset_of
from morejax.experiments.shared.methods import apply_method
from morejax.models.actor_critic import CriticConfig
from morejax.models.decoder_config import DecoderConfig
from morejax.tasks.multiwoz.context import MAX_ACTS, ContextConfig
from morejax.training.language_model import LanguageModelConfig
from morejax.training.ppo_config import PPOConfig
from morejax.training.reward_heads import RewardHeadConfig

__all__ = ["FIRST_READ", "PRESETS", "STAGES", "MultiwozConfig", "preset", "resolve"]

STAGES = ("supervised", "scaffold", "reward_heads", "ppo", "evaluate")
PRESETS = ("demo", "cpu", "gpu")
FIRST_READ = shared.FIRST_READ | {"aloud": "ppo"}


@dataclass(frozen=True)
class MultiwozConfig(ExperimentConfig):
    """Train and score a dialogue policy on MultiWOZ 2.2, or on the embedded corpus when no data folder is given."""

    preset: Literal["demo", "cpu", "gpu"] = "demo"
    """Where the other fields' defaults come from: demo (embedded corpus, minutes), cpu (2 cores, hours), gpu."""
    data_dir: Path | None = None
    """Folder with MultiWOZ 2.2 in its release layout (see `python -m morejax.tasks.multiwoz.download --help`). Without
    it the embedded corpus is used; with it nothing else is."""
    track: Literal["policy", "e2e"] = "policy"
    """policy: the gold state is in the context; e2e: the model writes the state itself."""
    aloud: bool = False
    """The policy writes its acts before each reply, as the scaffold does, from which it then starts: what PPO makes of
    a model that reasons aloud, at the price of those tokens. Without it the policy answers directly. End to end the
    states of the rollouts are then the scaffold's."""
    stages: tuple[str, ...] = STAGES
    """Stages to run, in order; finished ones of a resumed run are skipped."""
    devices: int | None = None
    """Devices to use, data-parallel; 0 takes all there are. The short form of --mesh data=N. Default: 1, or all where
    there are several processes."""
    coordinator: str | None = None
    """host:port of process 0, on several hosts that no launcher joins; auto asks the cluster (Slurm, Open MPI,
    Kubernetes, TPU pods), which happens by itself where its variables speak of several processes."""
    processes: int | None = None
    """Number of processes, with --coordinator host:port."""
    process: int | None = None
    """Number of this process, from 0, with --coordinator host:port."""
    heartbeat: int = 100
    """Seconds of silence after which a process is taken for dead, and the others end."""
    fit: str = ""
    """Splits to learn from, e.g. train+gold_fit. Empty: train, plus gold_fit where the corpus's dev_splits.json
    defines it."""
    weak: str = ""
    """Splits of --fit, joined by +, whose states and acts are not exact (annotated automatically, say): what is learnt
    from them holds a token that says so and that no prompt has later. The model takes language and most of the
    task from them, and writes states and acts as in the dialogues that are left."""
    exact_repeat: int = 1
    """With --weak: how often a pass shows the dialogues that are exact."""
    user_loss: bool = False
    """Supervised model and scaffold also learn to predict what users say: each utterance once a pass, every token
    weighing as much as one of a reply. From scratch there is little else to learn words from. Losses on --select are of
    replies alone. --supervised.token-dropout then spares the utterance that is answered, which is a target."""
    select: str = ""
    """Split that choices are made on. Empty: select where the corpus defines it, else dev."""
    eval_splits: tuple[str, ...] = ()
    """Splits scored at the end. Empty: --select, dev and test, as far as the corpus has them."""
    split: tuple[str, ...] = ()
    """Score the trained models on these splits, e.g. --split test once held-back dialogues are there: the command of a
    finished run with --split scores it again (stages that are done are skipped, as with --resume) and adds to its
    results. On a new run it is the same as --eval-splits."""
    compare: tuple[str, ...] = ()
    """NAME=RUN: evaluated runs whose replies stand beside this run's in the report's dialogues, e.g.
    mixed=runs/mixed. Added to a finished run by its command with --resume."""
    vocab_size: int = 4096
    """Tokens of the BPE trained on the corpus."""
    pretrained: Annotated[str | None, tyro.conf.arg(name="model")] = None
    """Folder or hub id of a Hugging Face model (GPT-2, Llama 3, SmolLM2, Qwen2.5, Qwen3) to start from, with its own
    tokenizer, which gets the task's tokens. Of --model.* only dtype, scan, remat and lora go with it. It wants lower
    learning rates than the presets', which are for a model from scratch."""
    # Long enough for what `context` is by default.
    model: DecoderConfig = field(default_factory=lambda: DecoderConfig(max_length=320))
    """The decoder; its vocabulary is set by the task. With --model.lora.rank PPO trains adapters on the supervised
    model, which stays as it is: of policy, reference (--ppo.ref-context direct) and critic (--critic.kind base or
    shared) there is one set of weights."""
    context: ContextConfig = field(default_factory=ContextConfig)
    """What the model sees of a dialogue; its track is --track."""

    def __post_init__(self) -> None:
        check_stages(self.stages, STAGES)
        if self.split and self.eval_splits not in ((), self.split):
            raise ValueError(
                f"--split {' '.join(self.split)} and --eval-splits {' '.join(self.eval_splits)} both name the splits "
                "to score: give one of them"
            )
        super().__post_init__()
        if self.exact_repeat < 1 or (self.exact_repeat > 1 and not self.weak):
            raise ValueError(
                f"--exact-repeat {self.exact_repeat}: expected at least 1, and more than 1 only with --weak, which "
                "says what is not exact"
            )
        if self.aloud and self.model.lora.rank:
            raise ValueError(
                f"--aloud starts from the scaffold, the adapters of --model.lora.rank {self.model.lora.rank} from the "
                "supervised model: leave one of them out"
            )
        if self.aloud and self.ppo.ref_context == "direct":
            raise ValueError(
                "--aloud: the reference is the scaffold, which reads what the policy writes; leave out "
                "--ppo.ref-context direct"
            )
        if self.heartbeat < 1:
            raise ValueError(f"--heartbeat must be at least 1 second, not {self.heartbeat}")
        if self.pretrained is None:
            _check_length(self.model, self.context, aloud=self.aloud)

    @property
    def max_acts(self) -> int:
        """Most tokens of acts before a reply; under --aloud as many as the model's positions have room for."""
        return self.context.acts_room(self.model.max_length) if self.aloud else MAX_ACTS

    @property
    def run_dir(self) -> Path:
        """Folder of the run."""
        return self.out or Path("runs/multiwoz") / f"{self.preset}-{self.track}-{self.method}-{self.seed}"

    @property
    def continues(self) -> bool:
        """Does the run go on in its folder? With --resume, and with --split where there is one."""
        return self.resume or (bool(self.split) and (self.run_dir / "config.json").is_file())


def resolve(config: MultiwozConfig) -> MultiwozConfig:
    """Put what --method, --track, --split and --model decide where it is read."""
    context, defaults = replace(config.context, track=config.track), preset(config.preset, config.track)
    eval_splits = config.split or config.eval_splits
    return replace(apply_method(config, defaults), context=context, eval_splits=eval_splits, model=_decoder(config))


_FEW_ACTS = 8
"""Fewer tokens of acts than this cut most of them."""

# Fields of a decoder that say how it is computed and trained, not what it is.
_COMPUTED = ("dtype", "scan", "remat", "lora")


def _decoder(config: MultiwozConfig) -> DecoderConfig:
    """The decoder: of the flags, or of the model to start from.

    Raises:
        ValueError: flags give it another shape than it has.
        FileNotFoundError: there is no such model.
    """
    if config.pretrained is None:
        return config.model
    from morejax.models import hf

    computed = {name: getattr(config.model, name) for name in _COMPUTED}
    found = hf.from_hf_config(hf.read_config(hf.local_folder(config.pretrained)), **computed)
    own = preset(config.preset, config.track).model
    given = [
        f"--model.{name.replace('_', '-')}"
        for name, value in vars(config.model).items()
        if name not in _COMPUTED and value not in (getattr(own, name), getattr(found, name))
    ]
    if given:
        raise ValueError(f"--model {config.pretrained} has a shape of its own: leave out {', '.join(given)}")
    _check_length(found, config.context, aloud=config.aloud)
    return found


def _check_length(model: DecoderConfig, context: ContextConfig, *, aloud: bool) -> None:
    if context.longest > model.max_length:
        held = f"--context.max-context {context.max_context} plus --context.max-reply {context.max_reply}"
        raise ValueError(
            f"--model.max-length {model.max_length} does not hold "
            + (f"--context.window {context.window}" if context.window else held)
        )
    if aloud and (room := context.acts_room(model.max_length)) < _FEW_ACTS:
        raise ValueError(
            f"--aloud: --model.max-length {model.max_length} leaves {room} tokens for acts beside "
            f"--context.max-context {context.max_context} and --context.max-reply {context.max_reply}, expected "
            f"{_FEW_ACTS} to {MAX_ACTS}"
        )


# Tokens of a prompt and of a state, end to end: the state before and room for the one to be written come on top of what
# a prompt of the policy track holds.
_END_TO_END = {"demo": (248, 96), "cpu": (256, 80), "gpu": (320, 96)}


def preset(name: str, track: str = "policy") -> MultiwozConfig:
    """Defaults for a machine, a corpus and a track.

    demo: the embedded corpus, the whole pipeline within 5 minutes on 2 cores.
    cpu: MultiWOZ 2.2 within 2.5 hours on 2 cores.
    gpu: MultiWOZ 2.2 within 25 minutes on one H100-class GPU.
    """
    made = preset_of(name, {"demo": _demo, "cpu": _cpu, "gpu": _gpu})
    if track != "e2e":
        return made
    max_context, max_state = _END_TO_END[name]
    context = replace(made.context, track="e2e", max_context=max_context, max_state=max_state)
    if name == "cpu":
        made = _end_to_end_recipe(made)
    model = replace(made.model, max_length=context.longest)
    return replace(made, track="e2e", context=context, model=model)


def _end_to_end_recipe(made: MultiwozConfig) -> MultiwozConfig:
    """The best of what was tried end to end (experiments/multiwoz/RESULTS.md, E2)."""
    return replace(
        made,
        supervised=replace(made.supervised, epochs=2.6),
        scaffold=replace(made.scaffold, epochs=0.3),
        ppo=replace(made.ppo, runs=3, iterations=30, eval_every=30),
        numbers=replace(made.numbers, thresholds={"inform": 0.8, "success": 0.75}, multiplier_ema=0.9),
    )


# For sampled replies, which reach this within ten iterations or so; greedy ones end above
# (experiments/multiwoz/ATTEMPTS.md, B13 to B24).
_THRESHOLDS = {"inform": 0.75, "success": 0.70}
# Within tens of iterations: a multiplier that moves slowly goes on asking for what there is already.
_MULTIPLIERS: dict[str, Any] = {"multiplier_init": 0.2, "multiplier_kp": 5.0, "multiplier_ki": 0.3}
_OBJECTIVES = ("corpus_bleu", "fluency", "faithfulness", "naturalness")


def _demo() -> MultiwozConfig:
    lm = LanguageModelConfig(epochs=3.5, tokens_per_batch=1024, learning_rate=4e-3, checkpoint_every=500)
    return MultiwozConfig(
        preset="demo",
        vocab_size=1024,
        model=DecoderConfig(vocab_size=1024, max_length=160, layers=2, width=96, heads=4),
        critic=CriticConfig(kind="shared", hidden=64),
        context=ContextConfig(max_context=112, max_reply=40, max_state=48),
        supervised=lm,
        scaffold=replace(lm, epochs=0.6, learning_rate=2e-3),
        reward=RewardHeadConfig(examples=1000, held_out=500, steps=300),
        ppo=PPOConfig(iterations=36, turns=128, eval_every=12, eval_dialogues=60, checkpoint_every=12),
        step=StepConfig(epochs=2),
        numbers=StepNumbers(learning_rate=6e-4, warmup_steps=2, multiplier_ema=0.8),
        samples=8,
    )


def _cpu() -> MultiwozConfig:
    """B44 of experiments/multiwoz/ATTEMPTS.md: whole dialogues; short runs, and a mean of J that follows them."""
    lm = LanguageModelConfig(
        epochs=3.6, tokens_per_batch=4096, learning_rate=2e-3, optimizer="muon", token_dropout=0.1, weight_decay=0.1
    )
    return MultiwozConfig(
        preset="cpu",
        vocab_size=4096,
        model=DecoderConfig(vocab_size=4096, max_length=384, layers=4, width=192, heads=6, shift=True),
        critic=CriticConfig(kind="shared", hidden=128),
        context=ContextConfig(max_context=208, max_reply=48, max_state=64, layout="dialogue", given=True, window=384),
        supervised=lm,
        scaffold=replace(lm, epochs=0.35, learning_rate=1e-3, weight_decay=0.05),
        reward=RewardHeadConfig(),
        ppo=PPOConfig(
            iterations=15,
            turns=256,
            eval_every=15,
            eval_dialogues=150,
            checkpoint_every=5,
            keep="last",
            average=0.5,
            runs=4,
        ),
        step=StepConfig(minibatches=8, objectives=_OBJECTIVES),
        numbers=StepNumbers(
            learning_rate=3e-4,
            warmup_steps=3,
            kl_coef=0.1,
            thresholds={"inform": 0.88, "success": 0.85},
            multiplier_ema=0.7,
            **_MULTIPLIERS,
        ),
    )


def _gpu() -> MultiwozConfig:
    lm = LanguageModelConfig(
        epochs=6.0, tokens_per_batch=16384, learning_rate=1e-3, token_dropout=0.1, weight_decay=0.1, log_every=20
    )
    return MultiwozConfig(
        preset="gpu",
        vocab_size=4096,
        model=DecoderConfig(vocab_size=4096, max_length=256, layers=6, width=512, heads=8, dtype="bfloat16", scan=True),
        critic=CriticConfig(kind="shared", hidden=256),
        context=ContextConfig(history=5, max_context=192, max_reply=64, max_state=96),
        supervised=lm,
        scaffold=replace(lm, epochs=2.0, learning_rate=5e-4),
        reward=RewardHeadConfig(examples=20000),
        ppo=PPOConfig(iterations=150, turns=512, eval_every=15, eval_dialogues=0, checkpoint_every=50),
        step=StepConfig(objectives=_OBJECTIVES),
        numbers=StepNumbers(learning_rate=1e-4, warmup_steps=4, thresholds=dict(_THRESHOLDS), **_MULTIPLIERS),
    )
