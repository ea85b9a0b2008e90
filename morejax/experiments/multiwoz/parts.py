"""What the stages of a run share: corpus, folder, devices, tokenizer, and the structure of the models."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax

from morejax import config as configs
from morejax import hosts
from morejax.experiments.multiwoz.config import FIRST_READ, MultiwozConfig
from morejax.experiments.multiwoz.decoding import Decoding
from morejax.experiments.multiwoz.samples import compared, read_predictions, shown_split
from morejax.experiments.shared.parts import RunParts
from morejax.models import hf
from morejax.models.split import Params
from morejax.sharding import make_mesh, mesh_from_text
from morejax.tasks.multiwoz import tokenizer as vocabulary
from morejax.tasks.multiwoz.dataset import load_corpus
from morejax.tasks.multiwoz.dialogue_layout import serialiser_of
from morejax.tasks.multiwoz.embedded import embedded_root
from morejax.tasks.multiwoz.records import Corpus, split_names
from morejax.tasks.multiwoz.task import MultiwozTask
from morejax.tasks.streams import StreamContext, get_stream
from morejax.training.interrupt import StopRequest
from morejax.training.placement import Placement
from morejax.training.run import Run, RunError


class Parts(RunParts):
    """A run's parts, each made when a stage first asks for it. Making the object reads the corpus and opens the folder.

    Every process makes one, and asks for the same things in the same order.

    Args:
        config: resolved configuration.
        stop: flag of the signal handler.
        read_only: look at a run that is there; its config.json stays as it is.

    Raises:
        ValueError: a flag, a name or the folder is not what it has to be; nothing has been written then.
        HostError: another process has found that.
    """

    def __init__(self, config: MultiwozConfig, stop: StopRequest, *, read_only: bool = False):
        self.config, self.stop, self._read_only = config, stop, read_only
        self.placement = Placement(_mesh(config))
        self._check_rows()
        hosts.together(self._read_corpus)
        self._check_alike()
        # Of the fields, not of the preset: what a preset sets today it did not set when there was no such field.
        settings, defaults = (dataclasses.asdict(one) for one in (config, MultiwozConfig()))
        self.run = Run(
            config.run_dir,
            settings,
            resume=config.continues,
            first_read=FIRST_READ,
            defaults=defaults,
            read_only=read_only,
        )
        self.dir = self.run.directory
        self.run.describe(
            corpus=self.corpus.name,
            corpus_dialogues=self._sizes,
            corpus_root=self.corpus.root.name,
            corpus_skipped=self.corpus.skipped,
            splits={"fit": self.fit, "select": self.select, "ppo": self.ppo_split},
        )
        self.task = self._make_task()

    def _read_corpus(self) -> None:
        config = self.config
        self.corpus = load_corpus(config.data_dir if config.data_dir is not None else embedded_root())
        self.fit, self.select = _splits(config, self.corpus)
        self._check_names()
        self._check_corpus()

    def _check_rows(self) -> None:
        """Rollouts are cut along data and fsdp.

        Raises:
            ValueError: they cannot be.
        """
        turns, shards = self.config.ppo.turns, self.placement.row_shards
        if "ppo" in self.config.stages and turns % shards:
            raise ValueError(f"--ppo.turns {turns} must be a multiple of the mesh's data x fsdp = {shards}")

    def _check_alike(self) -> None:
        """All processes must have been started alike, or they would wait for each other for ever.

        Raises:
            ValueError: flags or corpus of this process are not those of the main one.
        """
        own = json.loads(json.dumps(dataclasses.asdict(self.config), default=str))
        own |= {"corpus": self.corpus.name, "corpus_dialogues": self._sizes}
        main, *_ = hosts.exchange(lambda: own)
        other = [name for name, value in own.items() if value != main[name] and name not in _OWN]
        hosts.together(lambda: _refuse_different(other, own, main))

    def _check_names(self) -> None:
        """Find out now, not after hours, what a later stage would not accept.

        Raises:
            ValueError: an unknown split or stream, a number for a stream that the step does not have, or a run to
                --compare with that has not answered what is to be shown.
        """
        for splits in (self.ppo_split, *self.config.eval_splits):
            self.corpus.dialogues(splits)
        step, numbers = self.config.step, self.config.numbers
        for name in self._reward_streams:
            get_stream(name)
        thresholds = dict.fromkeys(step.constraints, 0.0) | dict(numbers.thresholds)
        configs.hyper(step, replace(numbers, thresholds=thresholds))
        if "evaluate" in self.config.stages and not self._read_only:
            part = shown_split(self.select, self.eval_splits)
            for folder in compared(self.config.compare).values():
                read_predictions(folder / f"{part}.json", self.corpus.dialogues(part)[: self.config.samples])

    @property
    def _reward_streams(self) -> tuple[str, ...]:
        return self.config.step.objectives + self.config.step.constraints

    @property
    def _sizes(self) -> dict[str, int]:
        return {name: len(dialogues) for name, dialogues in sorted(self.corpus.splits.items())}

    def _check_corpus(self) -> None:
        """A run goes on with the corpus that it began with, wherever that lies now.

        Raises:
            RunError: this is another one.
        """
        path = self.config.run_dir / "config.json"
        if not (self.config.continues and path.is_file()):
            return
        before = json.loads(path.read_text())
        sizes = before.get("corpus_dialogues", {})
        # A split may have come since (test dialogues that were held back); those that were there must be the same.
        kept = {name: self._sizes.get(name) for name in sizes}
        for name, then, now in (
            ("corpus", before.get("corpus", self.corpus.name), self.corpus.name),
            ("corpus_dialogues", sizes, kept),
        ):
            if then != now:
                raise RunError(
                    f"--resume: {path.parent} was run on another corpus ({name} {then!r} then, {now!r} now): "
                    "give the --data-dir it was run with"
                )

    @property
    def aloud(self) -> bool:
        """Does the policy write its acts before each reply?"""
        return self.config.aloud

    @property
    def ppo_split(self) -> str:
        """Dialogues that PPO samples from."""
        if self.config.ppo.split:
            return self.config.ppo.split
        # Where the corpus singles out exactly annotated dialogues, rewards are taken on those.
        return "gold_fit" if "gold_fit" in self.fit.split("+") else self.fit

    @property
    def eval_splits(self) -> tuple[str, ...]:
        """Splits to score at the end."""
        named = dict.fromkeys((self.select, "dev", "test"))
        return self.config.eval_splits or tuple(name for name in named if self.corpus.splits.get(name))

    def _make_task(self) -> MultiwozTask:
        """Corpus and tokenizer; the tokenizer is trained once and kept in the run."""
        folder = self.dir / "tokenizer"
        hosts.on_main(lambda: self._train_tokenizer(folder))
        tokenizer = hosts.together(lambda: vocabulary.load_tokenizer(folder))
        serialiser = serialiser_of(tokenizer, self.config.context)
        placeholders = vocabulary.placeholder_ids(tokenizer)
        context = StreamContext(self.corpus.database, None, placeholders, turn_by_turn=self.config.context.given)
        weak, exact_repeat = self.config.weak, self.config.exact_repeat
        return MultiwozTask(
            self.corpus, serialiser, self._reward_streams, context, weak=weak, exact_repeat=exact_repeat
        )

    def _train_tokenizer(self, folder: Path) -> None:
        if (folder / "tokenizer.json").is_file():
            return
        more = (vocabulary.WEAK,) if self.config.weak else ()
        if self.config.pretrained is not None:
            own = hf.load_tokenizer(hf.local_folder(self.config.pretrained))
            extended = vocabulary.extend_tokenizer(own, self.config.model.vocab_size, more)
            vocabulary.save_tokenizer(extended, folder)
            return
        turns = [turn for dialogue in self.corpus.dialogues(self.fit) for turn in dialogue.turns]
        texts = (text for turn in turns for text in (turn.user, turn.delex))
        vocabulary.save_tokenizer(vocabulary.train_tokenizer(texts, self.config.vocab_size, more), folder)

    def learnt(self, *, reasoned: bool) -> list[Any]:
        """Sequences that supervised model or scaffold (`reasoned`) learn from."""
        return self.task.examples(self.fit, reasoned=reasoned, users=self.config.user_loss)

    def fresh(self) -> Params:
        """First parameters of the supervised stage: at random, or those of the model to start from."""
        if self.config.pretrained is None:
            return super().fresh()
        size, mesh = self.model_config.vocab_size, self.placement.mesh
        return hf.load_pretrained(self.config.pretrained, vocab_size=size, mesh=mesh).params

    @cached_property
    def decoding(self) -> Decoding:
        """Replies of models without a critic."""
        config = self.config
        return Decoding(
            self.language_model[0], self.task, config.context, self.stop, self.placement, max_acts=config.max_acts
        )


# What each process may be told differently.
_OWN = ("process", "data_dir")


def _refuse_different(names: Sequence[str], own: Mapping[str, Any], main: Mapping[str, Any]) -> None:
    if names:
        found = "; ".join(f"{name}: {main[name]!r} there, {own[name]!r} here" for name in names)
        raise ValueError(f"started with something else than the main process ({found})")


def _mesh(config: MultiwozConfig) -> jax.sharding.Mesh | None:
    """The mesh that the flags ask for; None for one device of one process."""
    found, several = jax.devices(), jax.process_count() > 1
    if config.mesh:
        return mesh_from_text(config.mesh)
    devices = (0 if several else 1) if config.devices is None else config.devices
    count = devices or len(found)
    if count > len(found):
        raise ValueError(f"--devices {devices}: only {len(found)} {found[0].platform} device(s) found")
    if several and count < len(found):
        raise ValueError(
            f"--devices {devices}: {jax.process_count()} processes use all of their {len(found)} devices; leave the "
            "flag out"
        )
    return None if count == 1 else make_mesh(data=count, devices=found[:count])


def _splits(config: MultiwozConfig, corpus: Corpus) -> tuple[str, str]:
    """Splits to learn from and to choose on; asking the corpus for them checks their names."""
    named = "gold_fit" in corpus.splits and "select" in corpus.splits
    fit = config.fit or ("train+gold_fit" if named else "train")
    select = config.select or ("select" if named else "dev")
    for splits in (fit, select):
        corpus.dialogues(splits)
    if config.weak:
        _check_weak(config.weak, fit)
    return fit, select


def _check_weak(weak: str, fit: str) -> None:
    """A model that saw nothing but marked sequences would not know the prompts, which have no mark.

    Raises:
        ValueError: a weak split is not learnt from, or nothing else is.
    """
    marked, learnt = set(split_names(weak)), set(split_names(fit))
    if other := sorted(marked - learnt):
        raise ValueError(f"--weak {weak}: {', '.join(other)} is not among the splits learnt from, --fit {fit}")
    if marked == learnt:
        raise ValueError(f"--weak {weak}: --fit {fit} has no split besides, expected an exact one, too")
