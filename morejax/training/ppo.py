"""The PPO stage: sample replies to whole dialogues, score them, take one compiled step; again."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from morejax import hosts
from morejax.compile import compile_step
from morejax.config import StepConfig
from morejax.models.split import Params, whole
from morejax.state import TrainState
from morejax.tasks.streams import NonFiniteStream
from morejax.training.checkpoint import Checkpoints, save_params
from morejax.training.interrupt import StopRequest
from morejax.training.language_model import NonFinite
from morejax.training.placement import ONE_DEVICE, Placement
from morejax.training.ppo_config import PPOConfig
from morejax.training.progress import Progress
from morejax.training.rollouts import Frozen, Sampler, Shapes, plan
from morejax.training.task import Task, TurnPrompts
from morejax.training.writers import Writer, open_writers


def fit(
    task: Task,
    state: TrainState,
    frozen: Frozen,
    prompts: Sequence[Sequence[TurnPrompts]],
    step: StepConfig,
    ppo: PPOConfig,
    shapes: Shapes,
    *,
    run_dir: Path,
    seed: int,
    stop: StopRequest,
    evaluate: Callable[[Params], dict[str, float]],
    placement: Placement = ONE_DEVICE,
) -> dict[str, Any]:
    """Run the loop; resumes from the newest checkpoint of the stage.

    Args:
        task: streams and tokens.
        state: fresh train state.
        frozen: reference, language model, head.
        prompts: of every dialogue to sample from.
        step: structure of the step.
        ppo: numbers of the loop.
        shapes: static sizes.
        run_dir: the run's folder; best or last trained parameters go to checkpoints/ppo-final.
        seed: of the order of dialogues.
        stop: flag of the signal handler.
        evaluate: greedy scores of parameters on the selection split.
        placement: where state and rollouts lie.

    Returns:
        {"best": {...}, "first": metrics of the first iteration, "last": of the last}.

    Raises:
        NonFinite: a number is NaN or infinite; names stream and iteration. The last checkpoint is from before.
        Interrupted: after a signal, once a checkpoint is written.
    """
    state, mesh = placement.state(state), placement.mesh
    checkpoints = Checkpoints(run_dir / "checkpoints" / "ppo", keep=2)
    start, restored = 0, None
    progress: dict[str, Any] = {"best": None, "first": None, "last": None}
    if checkpoints.latest() is not None:
        restored_state, meta = checkpoints.restore(state.replace(frozen=None))
        state = restored_state.replace(frozen=state.frozen)
        start = restored = meta["iteration"]
        progress = meta["progress"]
    sampler = Sampler(task, state, frozen, step, shapes, ppo, placement)
    train = compile_step(step, mesh=mesh, state=state)
    batches = plan([len(turns) * ppo.samples for turns in prompts], shapes.turns, seed)
    for _ in range(start):
        next(batches)
    final = run_dir / "checkpoints" / "ppo-final"
    with (
        contextlib.closing(checkpoints),
        open_writers(run_dir, "ppo", restored_step=restored) as writer,
        Progress("ppo", ppo.iterations, start=start, every_seconds=20) as bar,
    ):
        log = LateLog(writer, bar, progress)
        if start == 0 and ppo.eval_every:
            progress["best"] = _evaluate(evaluate, state, 0, writer, final, None, ppo)
        for iteration in range(start + 1, ppo.iterations + 1):
            log.begin(iteration)
            rows = [prompt for number in next(batches) for _ in range(ppo.samples) for prompt in prompts[number]]
            key, sample_key = jax.random.split(state.key)
            try:
                rollout, count = sampler(whole(state.graphdef, state.params), rows, sample_key)
            except NonFiniteStream as error:
                raise NonFinite(f"ppo, iteration {iteration}: {error}; the checkpoint before it is kept") from error
            state, metrics = train(state.replace(key=key), rollout)
            log.add(metrics, count)
            last = iteration == ppo.iterations
            due = ppo.eval_every and (iteration % ppo.eval_every == 0 or last)
            save = iteration % ppo.checkpoint_every == 0 or last
            # Never write, or choose, a state whose numbers were not looked at.
            if due or save:
                log.flush()
            if due:
                progress["best"] = _evaluate(evaluate, state, iteration, writer, final, progress["best"], ppo)
            # Read once, after the evaluation: whoever leaves has saved.
            stopping = bool(stop)
            if save or stopping:
                log.flush()
                checkpoints.save(iteration, state.replace(frozen=None), {"iteration": iteration, "progress": progress})
            if stopping:
                stop.raise_if_set()
        if ppo.keep == "last" or not ppo.eval_every:
            save_params(final, state.params, {"iteration": ppo.iterations})
    return progress


def _evaluate(evaluate, state, iteration, writer, final, best, ppo) -> dict[str, float]:
    """Score greedily, log, and keep the trained parameters when they are the best so far."""
    scores = evaluate(whole(state.graphdef, state.params))
    writer.scalars(iteration, {f"eval/{name}": value for name, value in scores.items()})
    if best is None or scores["combined"] > best["combined"]:
        best = scores | {"iteration": iteration}
        if ppo.keep == "best":
            save_params(final, state.params, best)
    return best


@dataclass(frozen=True)
class _Pending:
    """Numbers of an iteration that are not read yet."""

    iteration: int
    metrics: Mapping[str, jax.Array]
    tokens: int | jax.Array
    began: float
    """Seconds of the clock."""


class LateLog:
    """Reads the numbers of an iteration while the next one is computed: the device is never waited for.

    An iteration lasts until the next one begins, or until its numbers are there when `flush` asks for them at once;
    what is done after a flush (evaluations, checkpoints) belongs to no iteration.

    Args:
        writer: takes the scalars.
        bar: shows some of them.
        progress: gets the numbers of the `first` and of the `last` iteration.
        clock: seconds, monotonic.
    """

    def __init__(
        self, writer: Writer, bar: Progress, progress: dict[str, Any], clock: Callable[[], float] = time.monotonic
    ):
        self._writer, self._bar, self._progress, self._clock = writer, bar, progress, clock
        self._iteration, self._began = 0, clock()
        self._pending: _Pending | None = None

    def begin(self, iteration: int) -> None:
        """An iteration begins."""
        self._iteration, self._began = iteration, self._clock()

    def add(self, metrics: Mapping[str, jax.Array], tokens: int | jax.Array) -> None:
        """Keep the numbers of the iteration that has begun, and write those of the one before."""
        before, self._pending = self._pending, _Pending(self._iteration, metrics, tokens, self._began)
        if before is not None:
            self._write(before, _fetch(before.metrics), self._began - before.began)

    def flush(self) -> None:
        """Wait for the numbers that are still kept and write them.

        Raises:
            NonFinite: one of them is NaN or infinite.
        """
        kept, self._pending = self._pending, None
        if kept is not None:
            numbers = _fetch(kept.metrics)
            self._write(kept, numbers, self._clock() - kept.began)

    def _write(self, kept: _Pending, numbers: dict[str, float], seconds: float) -> None:
        check_finite(kept.iteration, numbers)
        tokens = int(kept.tokens)
        numbers |= {"response_tokens": float(tokens), "tokens_per_s": tokens / seconds}
        self._writer.scalars(kept.iteration, numbers)
        shown = {name[2:]: value for name, value in numbers.items() if name.startswith("J/")}
        self._bar.update(kept.iteration, shown | {"kl": numbers["kl"]}, tokens=tokens)
        self._progress["last"] = numbers
        self._progress["first"] = self._progress["first"] or numbers


def _fetch(metrics: Mapping[str, jax.Array]) -> dict[str, float]:
    return {name: float(value) for name, value in hosts.to_host(dict(metrics)).items()}


def check_finite(iteration: int, numbers: dict[str, float]) -> None:
    """Stop when a metric is NaN or infinite.

    Raises:
        NonFinite: naming the streams first, since theirs is the cause and the sums only inherit it.
    """
    bad = [name for name, value in numbers.items() if not math.isfinite(value)]
    if bad:
        streams = sorted({name.split("/")[1] for name in bad if name.startswith(("J/", "stream_loss/", "grad_norm/"))})
        where = f"stream {', '.join(streams)}: " if streams else ""
        raise NonFinite(
            f"ppo, iteration {iteration}: {where}{', '.join(bad[:6])} is not finite; the checkpoint before it is kept "
            "(to try a lower --numbers.learning-rate, delete checkpoints/ppo and --resume)"
        )
