"""What the stages of a run share: corpus, folder, devices, task, and the structure of the models."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax

from morejax import config as configs
from morejax.experiments.shared.decoding import Decoding
from morejax.experiments.shared.parts import RunParts
from morejax.experiments.shop.config import FIRST_READ, SPLIT_NAMES, ShopConfig
from morejax.experiments.shop.task import ShopCorpus, ShopTask
from morejax.sharding import make_mesh, mesh_from_text
from morejax.tasks.shop import tokenizer
from morejax.tasks.shop.context import Serialiser
from morejax.tasks.streams import get_stream
from morejax.training.interrupt import StopRequest
from morejax.training.placement import Placement
from morejax.training.run import Run


class ShopParts(RunParts):
    """A run's parts, each made when a stage first asks for it. Making the object opens the folder.

    Args:
        config: resolved configuration.
        stop: flag of the signal handler.
        read_only: leave the folder of a finished run as it is.

    Raises:
        ValueError: a flag, a name or the folder is not what it has to be; nothing has been written then.
    """

    fit, select = "train", "dev"
    eval_splits = ("dev", "test", "held_out")
    """Splits to score at the end."""

    def __init__(self, config: ShopConfig, stop: StopRequest, *, read_only: bool = False):
        self.config, self.stop = config, stop
        self.placement = Placement(_mesh(config))
        sizes = {name: getattr(config.corpus, name) for name in SPLIT_NAMES}
        self.corpus = ShopCorpus(sizes, config.corpus.seed)
        self._check()
        self.task = ShopTask(self.corpus, Serialiser(config.context), self.reward_streams, drills=config.corpus.drills)
        if read_only:
            self.dir = config.run_dir
            self.run = FinishedRun(self.dir)
            return
        settings, defaults = (dataclasses.asdict(one) for one in (config, ShopConfig()))
        self.run = Run(config.run_dir, settings, resume=config.resume, first_read=FIRST_READ, defaults=defaults)
        self.dir = self.run.directory
        self.run.describe(experiment="shop", corpus=self.corpus.name, corpus_dialogues=sizes)
        self.task.tokenizer.save_pretrained(self.dir / "tokenizer")

    def _check(self) -> None:
        """Find out now, not after hours, what a later stage would not accept.

        Raises:
            ValueError: an unknown split or stream, a number for a stream that the step does not have, or rows that the
                mesh cannot cut.
        """
        config, shards = self.config, self.placement.row_shards
        if config.ppo.split:
            raise ValueError(f"--ppo.split {config.ppo.split}: PPO samples from the split train, leave it out")
        for name in self.reward_streams:
            get_stream(name)
        thresholds = dict.fromkeys(config.step.constraints, 0.0) | dict(config.numbers.thresholds)
        configs.hyper(config.step, replace(config.numbers, thresholds=thresholds))
        if "ppo" in config.stages and config.ppo.turns % shards:
            raise ValueError(f"--ppo.turns {config.ppo.turns} must be a multiple of the mesh's data x fsdp = {shards}")

    @property
    def reward_streams(self) -> tuple[str, ...]:
        """Objectives and constraints of the step."""
        return self.config.step.reward_streams

    def task_with(self, streams: Sequence[str], fluency_range: tuple[float, float] | None = None) -> ShopTask:
        """The task with these streams, and the range that fluency is scaled by."""
        made = self.task.with_streams(streams)
        return made.with_context(replace(made.context, fluency_range=fluency_range))

    @cached_property
    def decoding(self) -> Decoding:
        """Replies of models without a critic."""
        serialiser, context = self.task.serialiser, self.config.context
        # A marker stands between the reasoning and the reply.
        reasoning = serialiser.token(tokenizer.REASONING), context.max_reasoning + 1, serialiser.split_reasoned
        return Decoding(
            self.language_model[0], self.task, context.max_reply, reasoning, self.stop, self.placement, step=64
        )


class FinishedRun:
    """What the stages of a run have recorded, for reading."""

    def __init__(self, directory: Path):
        path = directory / "stages.json"
        self._records: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}

    def stage_record(self, stage: str) -> dict[str, Any] | None:
        """What `stage` recorded when it was finished, or None."""
        return self._records.get(stage)


def _mesh(config: ShopConfig) -> jax.sharding.Mesh | None:
    """The mesh that the flags ask for; None for one device."""
    if config.mesh:
        return mesh_from_text(config.mesh)
    found = jax.devices()
    count = (1 if config.devices is None else config.devices) or len(found)
    if count > len(found):
        raise ValueError(f"--devices {config.devices}: only {len(found)} {found[0].platform} device(s) found")
    return None if count == 1 else make_mesh(data=count, devices=found[:count])
