"""The stages of the MultiWOZ experiment, in order; each reads what the ones before it left in the run's folder."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from morejax import config as configs
from morejax.experiments.multiwoz.config import FIRST_READ, MultiwozConfig
from morejax.experiments.multiwoz.results import collect_results, write_samples
from morejax.models import ActorCritic, RewardHead, split
from morejax.models.split import Params
from morejax.rollout import SamplerConfig
from morejax.sharding import make_mesh, rollout_sharding
from morejax.state import init_state
from morejax.tasks.multiwoz import tokenizer as vocabulary
from morejax.tasks.multiwoz.board import nearest_rows
from morejax.tasks.multiwoz.dataset import load_corpus
from morejax.tasks.multiwoz.embedded import embedded_root
from morejax.tasks.multiwoz.examples import Serialiser
from morejax.tasks.multiwoz.records import REAL_CORPUS_NAME, Corpus
from morejax.tasks.multiwoz.task import MultiwozTask, TurnPrompts
from morejax.tasks.streams import StreamContext, get_stream
from morejax.training import language_model, ppo
from morejax.training import reward_heads as heads
from morejax.training.batching import Sequences
from morejax.training.checkpoint import load_params, save_params
from morejax.training.generate import Generator
from morejax.training.interrupt import StopRequest
from morejax.training.progress import Progress
from morejax.training.report import write_report
from morejax.training.run import Run, RunError, write_json

logger = logging.getLogger("morejax")

Ids = tuple[int, ...]
_MAX_ACTS = 24  # tokens the scaffold may write before it answers


class Pipeline:
    """One run of the experiment.

    Args:
        config: resolved configuration.
        stop: flag of the signal handler.
    """

    def __init__(self, config: MultiwozConfig, stop: StopRequest):
        self.config, self.stop, self._stage = config, stop, ""
        self.mesh = _mesh(config.devices)
        self.corpus = _corpus(config)
        self.fit, self.select = _splits(config, self.corpus)
        self._check_names()
        self.run = Run(config.run_dir, dataclasses.asdict(config), resume=config.resume, first_read=FIRST_READ)
        self.dir = self.run.directory
        self._check_corpus()
        self.run.describe(
            corpus=self.corpus.name,
            corpus_dialogues=self._sizes,
            corpus_root=self.corpus.root.name,
            corpus_skipped=self.corpus.skipped,
            splits={"fit": self.fit, "select": self.select, "ppo": self._ppo_split},
        )

    def _check_names(self) -> None:
        """Find out now, not after hours, what a later stage would not accept.

        Raises:
            ValueError: an unknown split or stream, or a number for a stream that the step does not have.
        """
        for splits in (self._ppo_split, *self.config.eval_splits):
            self.corpus.dialogues(splits)
        step, numbers = self.config.step, self.config.numbers
        for name in step.streams:
            get_stream(name)
        thresholds = dict.fromkeys(step.constraints, 0.0) | dict(numbers.thresholds)
        configs.hyper(step, replace(numbers, thresholds=thresholds))

    @property
    def _sizes(self) -> dict[str, int]:
        return {name: len(dialogues) for name, dialogues in sorted(self.corpus.splits.items())}

    def _check_corpus(self) -> None:
        """A run goes on with the corpus that it began with, wherever that lies now."""
        before = json.loads((self.dir / "config.json").read_text())
        sizes = before.get("corpus_dialogues", {})
        # A split may have come since (test dialogues that were held back); those that were there must be the same.
        kept = {name: self._sizes.get(name) for name in sizes}
        for name, then, now in (
            ("corpus", before.get("corpus", self.corpus.name), self.corpus.name),
            ("corpus_dialogues", sizes, kept),
        ):
            if then != now:
                raise RunError(
                    f"--resume: {self.dir} was run on another corpus ({name} {then!r} then, {now!r} now): "
                    "give the --data-dir it was run with"
                )

    # Parts that stages share

    @property
    def _ppo_split(self) -> str:
        if self.config.ppo.split:
            return self.config.ppo.split
        # Where the corpus singles out exactly annotated dialogues, rewards are taken on those.
        return "gold_fit" if "gold_fit" in self.fit.split("+") else self.fit

    @cached_property
    def task(self) -> MultiwozTask:
        """Corpus and tokenizer; the tokenizer is trained once and kept in the run."""
        folder = self.dir / "tokenizer"
        if (folder / "tokenizer.json").is_file():
            tokenizer = vocabulary.load_tokenizer(folder)
        else:
            turns = [turn for dialogue in self.corpus.dialogues(self.fit) for turn in dialogue.turns]
            texts = (text for turn in turns for text in (turn.user, turn.delex))
            tokenizer = vocabulary.train_tokenizer(texts, self.config.vocab_size)
            vocabulary.save_tokenizer(tokenizer, folder)
        serialiser = Serialiser(tokenizer, self.config.context)
        context = StreamContext(self.corpus.database, None, vocabulary.placeholder_ids(tokenizer))
        return MultiwozTask(self.corpus, serialiser, self.config.step.streams, context)

    @cached_property
    def model_config(self):
        """The decoder's configuration with the tokenizer's vocabulary."""
        return replace(self.config.model, vocab_size=len(self.task.tokenizer))

    @cached_property
    def language_model(self) -> tuple[nnx.GraphDef, Params]:
        """Structure and fresh parameters of the model without a critic."""
        return split(ActorCritic(self.model_config, rngs=nnx.Rngs(self.config.seed)))

    def load(self, stage: str) -> Params:
        """Final parameters of a language-model stage.

        Raises:
            FileNotFoundError: the stage has not been run in this folder.
        """
        return self._on_devices(load_params(self.dir / "checkpoints" / f"{stage}-final", self.language_model[1])[0])

    def _on_devices(self, tree: Any) -> Any:
        if self.mesh is None:
            return jax.device_put(tree, jax.devices()[0])
        return jax.device_put(tree, jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec()))

    def _place(self, tree: Any) -> Any:
        return tree if self.mesh is None else jax.device_put(tree, rollout_sharding(self.mesh))

    def generator(self, **settings: Any) -> Generator:
        """Greedy decoding of replies."""
        defaults = SamplerConfig(
            max_new_tokens=self.config.context.max_reply,
            temperature=0.0,
            eos_id=self.task.eos_id,
            pad_id=self.task.pad_id,
        )
        return Generator(self.language_model[0], replace(defaults, **settings), between=self._between_batches)

    def _between_batches(self) -> None:
        """Outside PPO, whose loop saves first, decoding may be left at once: its stage starts again."""
        if self._stage != "ppo":
            self.stop.raise_if_set()

    @cached_property
    def _reply_generator(self) -> Generator:
        return self.generator()

    @cached_property
    def _state_generator(self) -> Generator:
        return self.generator(
            max_new_tokens=self.config.context.max_state, eos_id=self.task.serialiser.token(vocabulary.DATABASE)
        )

    @cached_property
    def _sampling_generator(self) -> Generator:
        return self.generator(temperature=1.0)

    @cached_property
    def _reasoned_generator(self) -> Generator:
        return self.generator(max_new_tokens=self.config.context.max_reply + _MAX_ACTS)

    def answer(self, params: Params, label: str = "") -> Callable[[Sequence[Ids]], list[Ids]]:
        """Greedy replies of a model that answers directly; a label shows a progress bar."""
        return lambda prompts: self._decode(self._reply_generator, params, prompts, label)

    def _decode(self, generator: Generator, params: Params, prompts: Sequence[Ids], label: str) -> list[Ids]:
        if not label:
            return generator(params, prompts)
        with Progress(label, len(prompts)) as bar:
            return generator(params, prompts, progress=bar)

    def reason_and_answer(self, params: Params, label: str = "") -> Callable[[Sequence[Ids]], list[Ids]]:
        """Greedy replies of the scaffold, which writes acts first."""
        acts = self.task.serialiser.token(vocabulary.ACTS)

        def generate(prompts: Sequence[Ids]) -> list[Ids]:
            opened = [(*prompt[:-1], acts) for prompt in prompts]
            written = self._decode(self._reasoned_generator, params, opened, label)
            return [self.task.split_reasoned(ids)[1][: self.config.context.max_reply] for ids in written]

        return generate

    def write_states(self, params: Params) -> Callable[[Sequence[Ids]], list[Ids]]:
        """Greedy states of a model (end-to-end track)."""
        return lambda prompts: self._state_generator(params, prompts)

    def predict(self, params: Params, splits: str, *, reasoned: bool = False, limit: int = 0, label: str = ""):
        """Predictions in the standard format."""
        generate = self.reason_and_answer(params, label) if reasoned else self.answer(params, label)
        return self.task.predict(splits, generate, self.write_states(params), limit)

    # Stages

    def supervised(self, record: dict[str, Any]) -> None:
        """Language modelling of replies (and states, end to end) in the direct form that the policy uses."""
        graphdef, params = self.language_model
        self._fit_language_model("supervised", graphdef, params, self.config.supervised, record, reasoned=False)

    def scaffold(self, record: dict[str, Any]) -> None:
        """Language modelling of acts and replies, from the supervised parameters; frozen afterwards."""
        graphdef, _ = self.language_model
        params = self.load("supervised")
        self._fit_language_model("scaffold", graphdef, params, self.config.scaffold, record, reasoned=True)

    def _fit_language_model(self, stage, graphdef, params, config, record, *, reasoned: bool) -> None:
        train, dev = (_sequences(self.task.examples(splits, reasoned=reasoned)) for splits in (self.fit, self.select))
        params, numbers = language_model.fit(
            stage,
            graphdef,
            self._on_devices(params),
            train,
            dev,
            config,
            run_dir=self.dir,
            seed=self.config.seed,
            pad_id=self.task.pad_id,
            drop_id=self.task.drop_id,
            stop=self.stop,
            place=self._place,
        )
        save_params(self.dir / "checkpoints" / f"{stage}-final", params, numbers)
        record |= numbers

    def reward_heads(self, record: dict[str, Any]) -> None:
        """Naturalness head on the frozen supervised trunk, and the corpus's likelihood range for fluency."""
        config, params = self.config.reward, self.load("supervised")
        fit = self._judged(params, self.fit, config.examples, seed=1)
        held_out = self._judged(params, self.select, config.held_out, seed=2)
        graphdef, head = heads.fit_head(
            fit["features"], fit["human"], self.model_config.width, config, seed=self.config.seed
        )
        logits = np.asarray(jax.jit(nnx.merge(graphdef, head).__call__)(held_out["features"]), np.float64)
        quality = heads.calibration(1 / (1 + np.exp(-logits)), held_out["human"])
        human_logp = fit["logp"][fit["human"]]
        low, high = (float(np.percentile(human_logp, share)) for share in (5, 95))
        write_json(self.dir / "reward_heads.json", {"naturalness": quality})
        save_params(self.dir / "checkpoints" / "reward_heads-final", head, {"fluency_range": [low, high]})
        print(
            f"reward_heads: naturalness held-out accuracy {quality['accuracy']:.3f}, auc {quality['auc']:.3f}, "
            f"ece {quality['ece']:.3f}; fluency range [{low:.2f}, {high:.2f}] nats per token",
            file=sys.stderr,
        )
        record |= {"accuracy": quality["accuracy"], "auc": quality["auc"], "fluency_range": [low, high]}

    def _judged(self, params: Params, splits: str, count: int, seed: int) -> dict[str, np.ndarray]:
        """Human replies and samples of the model to the same prompts, with their features."""
        prompts = [p for dialogue in self.corpus.dialogues(splits) for p in self.task.prompts(dialogue)]
        chosen = np.random.default_rng([self.config.seed, seed]).permutation(len(prompts))[:count]
        direct = [prompts[row].direct for row in chosen]
        human = [prompts[row].reference for row in chosen]
        with Progress(f"reward_heads samples {splits}", len(direct)) as bar:
            drawn = self._sampling_generator(params, direct, seed=seed, progress=bar)
        logp, features = self._features(params, direct * 2, human + drawn)
        return {"logp": logp, "features": features, "human": np.arange(len(logp)) < len(human)}

    def _features(self, params: Params, prompts: Sequence[Ids], replies: Sequence[Ids]):
        context = self.config.context
        return heads.features_of(
            self.language_model[0],
            params,
            prompts,
            replies,
            context=context.max_context,
            reply=context.max_reply,
            pad_id=self.task.pad_id,
        )

    def ppo(self, record: dict[str, Any]) -> None:
        """Constrained PPO from the supervised policy, anchored to the scaffold."""
        config = self.config
        supervised, scaffold = self.load("supervised"), self.load("scaffold")
        head_graphdef, head = self._reward_head()
        self._set_fluency_range()
        measured = self._reference_scores(supervised, scaffold, head_graphdef, head)
        numbers = self._numbers(measured)
        prompts = self._ppo_prompts(supervised)
        model = ActorCritic(
            self.model_config,
            critic=config.critic,
            streams=len(config.step.streams),
            rngs=nnx.Rngs(config.seed),
        )
        state = init_state(model, config.step, numbers, seed=config.seed)
        # A copy: the state is donated, the frozen models stay.
        state = state.replace(params=state.params | jax.tree.map(jax.numpy.copy, supervised))
        reference = scaffold if config.ppo.ref_context == "reasoned" else supervised
        frozen = ppo.Frozen(self.language_model[0], reference, supervised, head_graphdef, head)
        shapes = ppo.static_shapes(prompts, config.ppo.turns, config.context.max_reply)
        progress = ppo.fit(
            self.task,
            state,
            frozen,
            prompts,
            config.step,
            config.ppo,
            shapes,
            run_dir=self.dir,
            seed=config.seed,
            stop=self.stop,
            evaluate=self._quick_scores,
            mesh=self.mesh,
        )
        record |= {"best": progress["best"], "constraints": _constraint_table(config.step, progress)}

    def _reward_head(self) -> tuple[nnx.GraphDef, Params]:
        graphdef, like = split(RewardHead(self.model_config.width, hidden=self.config.reward.hidden, rngs=nnx.Rngs(0)))
        return graphdef, self._on_devices(load_params(self.dir / "checkpoints" / "reward_heads-final", like)[0])

    def _set_fluency_range(self) -> None:
        record = self.run.stage_record("reward_heads")
        if record is None:
            raise FileNotFoundError(f"{self.dir}: the ppo stage needs the reward_heads stage; add it to --stages")
        low, high = record["fluency_range"]
        self.task.context = replace(self.task.context, fluency_range=(low, high))

    def _reference_scores(self, supervised, scaffold, head_graphdef, head) -> dict[str, dict[str, float]]:
        """J of every stream on the selection split for corpus replies and for the scaffold's greedy ones."""
        path = self.dir / "reference_scores.json"
        if path.is_file():
            scores = json.loads(path.read_text())
            if set(scores["human"]) == set(self.task.streams):
                return scores
        prompts = [p for dialogue in self.corpus.dialogues(self.select) for p in self.task.prompts(dialogue)]
        direct = [prompt.direct for prompt in prompts]
        replies = {
            "human": [prompt.reference for prompt in prompts],
            "scaffold": self.reason_and_answer(scaffold, "scaffold sets the thresholds")(direct),
        }
        scores = {}
        for who, said in replies.items():
            logp, features = self._features(supervised, direct, said)
            natural = jax.nn.sigmoid(nnx.merge(head_graphdef, head)(features))
            batch = self.task.sampled(prompts, said, logp, np.asarray(natural))
            streams = self.task.rewards(batch, self.config.context.max_reply)
            weights = streams.weights * streams.applies
            means = (weights * streams.scores).sum(0) / np.maximum(weights.sum(0), 1e-9)
            scores[who] = {name: float(mean) for name, mean in zip(self.task.streams, means, strict=True)}
        scores["dialogues"] = {"count": float(len(self.corpus.dialogues(self.select)))}
        write_json(path, scores)
        return scores

    def _numbers(self, measured: dict[str, dict[str, float]]):
        """The step's numbers with thresholds and targets that were not given filled in from measurements."""
        step, numbers = self.config.step, self.config.numbers
        scaffold, human = measured["scaffold"], measured["human"]
        thresholds = dict(numbers.thresholds)
        for name in step.constraints:
            thresholds.setdefault(name, scaffold[name] - self.config.threshold_margin)
            error = math.sqrt(max(scaffold[name] * (1 - scaffold[name]), 0.0) / measured["dialogues"]["count"])
            if thresholds[name] > scaffold[name] + 2 * error:
                logger.warning(
                    "threshold %s >= %.3f lies %.3f above what the scaffold reaches (%.3f): it may be out of reach",
                    name,
                    thresholds[name],
                    thresholds[name] - scaffold[name],
                    scaffold[name],
                )
        # Human replies are the target where they can be scored; likeness to them is 1 by definition.
        targets = {name: 1.0 if name == "likeness" else human[name] for name in step.objectives} | dict(numbers.targets)
        self.run.describe(thresholds=thresholds, targets=targets)
        return replace(numbers, thresholds=thresholds, targets=targets)

    def _ppo_prompts(self, supervised: Params) -> list[list[TurnPrompts]]:
        """Prompts of all dialogues to sample from; end to end, their states are the supervised model's."""
        dialogues = self.corpus.dialogues(self._ppo_split)
        if self.config.track == "policy":
            return [self.task.prompts(dialogue) for dialogue in dialogues]
        contexts = [context for dialogue in dialogues for context in self.task.corpus_history(dialogue)]
        states = iter(self.task.track_states(contexts, self.write_states(supervised)))
        return [self.task.prompts(dialogue, [next(states) for _ in dialogue.turns]) for dialogue in dialogues]

    def _quick_scores(self, params: Params) -> dict[str, float]:
        """Greedy Inform, Success, BLEU and Combined on (a part of) the selection split."""
        actor = {name: part for name, part in params.items() if name != "value"}
        predictions = self.predict(actor, self.select, limit=self.config.ppo.eval_dialogues)
        scores = self.task.score(predictions, self.select)
        return {name: scores[name] for name in ("inform", "success", "bleu", "combined")}

    def evaluate(self, record: dict[str, Any]) -> None:
        """Predict and score every system on every split, write results, samples and the report."""
        systems = self._systems()
        predictions: dict[str, dict[str, Any]] = {}
        scores = []
        for name, (params, reasoned) in systems.items():
            for part in self._eval_splits():
                label = f"{name} answers {part}"
                made = self._predict_once(predictions.setdefault(name, {}), params, part, reasoned, label)
                scores.append({"system": name, "split": part} | self.task.score(made, part))
                row = scores[-1]
                print(
                    f"{name:>10} on {part:<8} inform {row['inform']:5.1f}  success {row['success']:5.1f}  "
                    f"bleu {row['bleu']:5.2f}  combined {row['combined']:6.2f}",
                    file=sys.stderr,
                )
        final = list(systems)[-1]
        folder = self.dir / "predictions"
        for name, parts in predictions.items():
            target = folder if name == final else folder / name
            target.mkdir(parents=True, exist_ok=True)
            for part, made in parts.items():
                write_json(target / f"{part}.json", made)
        results = collect_results(self.config, self.corpus.name, self.fit, self.select, scores, final, self.run)
        write_json(self.dir / "results.json", results)
        part = self.select if self.select in self._eval_splits() else self._eval_splits()[0]
        shown = self.corpus.dialogues(part)[: self.config.samples]
        before, after = predictions["supervised"][part], predictions[final][part]
        write_samples(self.dir / "samples.json", shown, before, after)
        record |= {"splits": list(self._eval_splits())}

    def _systems(self) -> dict[str, tuple[Params, bool]]:
        systems: dict[str, tuple[Params, bool]] = {"supervised": (self.load("supervised"), False)}
        if self.run.stage_record("scaffold") is not None:
            systems["scaffold"] = (self.load("scaffold"), True)
        if self.config.method != "supervised" and self.run.stage_record("ppo") is not None:
            systems["ppo"] = (self._final_policy(), False)
        elif self.config.method == "supervised":
            systems["supervised"] = systems.pop("supervised")  # the final system stands last
        return systems

    def _final_policy(self) -> Params:
        model = ActorCritic(
            self.model_config, critic=self.config.critic, streams=len(self.config.step.streams), rngs=nnx.Rngs(0)
        )
        params, _ = load_params(self.dir / "checkpoints" / "ppo-final", split(model)[1])
        return self._on_devices({name: part for name, part in params.items() if name != "value"})

    def _eval_splits(self) -> tuple[str, ...]:
        if self.config.eval_splits:
            return self.config.eval_splits
        named = dict.fromkeys((self.select, "dev", "test"))
        return tuple(name for name in named if self.corpus.splits.get(name))

    def _predict_once(self, made: dict[str, Any], params: Params, part: str, reasoned: bool, label: str):
        """Predictions of a split; a part of dev is taken from dev's when that is scored too."""
        ids = {dialogue.id for dialogue in self.corpus.dialogues(part)}
        if "dev" in self._eval_splits() and ids <= {d.id for d in self.corpus.splits.get("dev", ())}:
            if "dev" not in made:
                made["dev"] = self.predict(params, "dev", reasoned=reasoned, label=label)
            made[part] = {key: value for key, value in made["dev"].items() if key in ids}
        else:
            made[part] = self.predict(params, part, reasoned=reasoned, label=label)
        return made[part]

    def execute(self) -> Path:
        """Run the stages that are asked for and not done; returns the report's path (or the folder)."""
        for stage in self.config.stages:
            self.stop.raise_if_set()
            if stage != "evaluate" and self.run.stage_record(stage) is not None:
                print(f"{stage}: done before, skipped", file=sys.stderr)
                continue
            self._stage = stage
            with self.run.stage(stage) as record:
                getattr(self, stage)(record)
        if (self.dir / "results.json").is_file():
            self._finish_results()
            board = nearest_rows(self.config.track) if self.corpus.name == REAL_CORPUS_NAME else None
            return write_report(self.dir, board=board)
        return self.dir

    def _finish_results(self) -> None:
        """The evaluation's own time is known only now."""
        path = self.dir / "results.json"
        write_json(path, json.loads(path.read_text()) | {"timings": self.run.timings()})


def _mesh(devices: int) -> jax.sharding.Mesh | None:
    found = jax.devices()
    count = devices or len(found)
    if count > len(found):
        raise ValueError(f"--devices {devices}: only {len(found)} {found[0].platform} device(s) found")
    return None if count == 1 else make_mesh(data=count, devices=found[:count])


def _corpus(config: MultiwozConfig) -> Corpus:
    return load_corpus(config.data_dir if config.data_dir is not None else embedded_root())


def _splits(config: MultiwozConfig, corpus: Corpus) -> tuple[str, str]:
    named = "gold_fit" in corpus.splits and "select" in corpus.splits
    fit = config.fit or ("train+gold_fit" if named else "train")
    select = config.select or ("select" if named else "dev")
    corpus.dialogues(fit), corpus.dialogues(select)
    return fit, select


def _sequences(examples) -> Sequences:
    return Sequences(tuple(e.sequence for e in examples), tuple(e.target_mask for e in examples))


def _constraint_table(step, progress: dict[str, Any]) -> dict[str, dict[str, float]]:
    first, last = progress["first"], progress["last"]
    return {
        name: {
            "threshold": last[f"constraint/{name}/threshold"],
            "first": first[f"J/{name}"],
            "last": last[f"constraint/{name}/score_ema"],
            "multiplier": last[f"multiplier/{name}"],
        }
        for name in step.constraints
    }
