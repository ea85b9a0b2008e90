"""The loop of the PPO stage: iterations, evaluations, checkpoints, resuming. What an iteration does is the caller's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from morejax.models.split import Params, whole
from morejax.state import TrainState
from morejax.training import average
from morejax.training.checkpoint import Checkpoints, save_params
from morejax.training.interrupt import StopRequest
from morejax.training.late_log import LateLog
from morejax.training.placement import ONE_DEVICE, Placement
from morejax.training.ppo_config import PPOConfig
from morejax.training.progress import Progress
from morejax.training.writers import Writer, open_writers

Metrics = dict[str, jax.Array]
Advance = Callable[[TrainState, int], tuple[TrainState, Metrics, int | jax.Array]]
"""(state, iteration from 1) -> the state after it, its metrics, tokens of its replies."""


@dataclass(frozen=True)
class Watch:
    """What goes on around the iterations.

    Attributes:
        run_dir: the run's folder; best or last trained parameters go to checkpoints/ppo-final.
        stop: flag of the signal handler.
        evaluate: greedy scores of parameters on the selection split, `combined` among them.
        placement: where state and rollouts lie.
    """

    run_dir: Path
    stop: StopRequest
    evaluate: Callable[[Params], dict[str, float]]
    placement: Placement = ONE_DEVICE


def run(
    state: TrainState, make_advance: Callable[[TrainState, int], Advance], ppo: PPOConfig, watch: Watch
) -> dict[str, Any]:
    """Run the loop; resumes from the newest checkpoint of the stage.

    Iterations are counted through all of `ppo.runs`. Each run begins with the fresh state; the mean goes on.

    Args:
        state: fresh train state.
        make_advance: the placed state that the loop begins with, and how many iterations are behind it, to what does
            the next ones.
        ppo: numbers of the loop.
        watch: what goes on around it.

    Returns:
        {"best": {...}, "first": metrics of the first iteration, "last": of the last}.

    Raises:
        NonFinite: a number is NaN or infinite. The last checkpoint is from before.
        Interrupted: after a signal, once a checkpoint is written.
    """
    state = watch.placement.state(state)
    origin = _copy(state) if ppo.runs > 1 else None
    iterations = ppo.runs * ppo.iterations
    checkpoints = Checkpoints(watch.run_dir / "checkpoints" / "ppo", keep=2)
    start, restored = 0, None
    progress: dict[str, Any] = {"best": None, "first": None, "last": None}
    mean = average.begin(state.params) if ppo.average else None
    if checkpoints.latest() is not None:
        kept, meta = checkpoints.restore(_kept(state, mean))
        kept, mean = (kept, None) if mean is None else (kept["state"], kept["mean"])
        state = kept.replace(frozen=state.frozen)
        start = restored = meta["iteration"]
        progress = meta["progress"]
    advance = make_advance(state, start)
    chooser = _Chooser(watch.run_dir / "checkpoints" / "ppo-final", ppo, watch.evaluate)
    with (
        contextlib.closing(checkpoints),
        open_writers(watch.run_dir, "ppo", restored_step=restored) as writer,
        Progress("ppo", iterations, start=start, every_seconds=20) as bar,
    ):
        log = LateLog(writer, bar, progress)
        if start == 0 and ppo.eval_every:
            progress["best"] = chooser(state.graphdef, state.params, 0, writer, None)
        for iteration in range(start + 1, iterations + 1):
            log.begin(iteration)
            run, behind = divmod(iteration - 1, ppo.iterations)
            if origin is not None and run and not behind:
                state = _anew(origin, run).replace(frozen=state.frozen)
            state, metrics, tokens = advance(state, iteration)
            log.add(metrics, tokens)
            if mean is not None:
                mean = average.follow(mean, state.params, average.weight(iteration, ppo.iterations, ppo.average))
            final = state.params if mean is None else mean
            last = iteration == iterations
            due = bool(ppo.eval_every) and (iteration % ppo.eval_every == 0 or last)
            save = iteration % ppo.checkpoint_every == 0 or last
            # Never write, or choose, a state whose numbers were not looked at.
            if due or save:
                log.flush()
            if due:
                progress["best"] = chooser(state.graphdef, final, iteration, writer, progress["best"])
            # Read once, after the evaluation: whoever leaves has saved.
            stopping = bool(watch.stop)
            if save or stopping:
                log.flush()
                checkpoints.save(iteration, _kept(state, mean), {"iteration": iteration, "progress": progress})
            if stopping:
                watch.stop.raise_if_set()
        if ppo.keep == "last" or not ppo.eval_every:
            save_params(chooser.final, state.params if mean is None else mean, {"iteration": iterations})
    return progress


def _copy(state: TrainState) -> TrainState:
    """Arrays that outlive the state, whose buffers a step gives away."""
    return jax.tree.map(jnp.copy, state.replace(frozen=None))


def _anew(origin: TrainState, run: int) -> TrainState:
    """What a later run begins with: policy, multipliers and optimizer as at the beginning, and a key of its own."""
    return _copy(origin).replace(key=jax.random.fold_in(origin.key, run))


def _kept(state: TrainState, mean: Params | None) -> Any:
    """What a checkpoint holds."""
    trained = state.replace(frozen=None)
    return trained if mean is None else {"state": trained, "mean": mean}


class _Chooser:
    """Scores the policy greedily, logs that, and keeps the trained parameters when they are the best so far.

    Args:
        final: where they go.
        ppo: whether the best are kept.
        evaluate: scores of parameters.
    """

    def __init__(self, final: Path, ppo: PPOConfig, evaluate: Callable[[Params], dict[str, float]]):
        self.final, self._ppo, self._evaluate = final, ppo, evaluate

    def __call__(
        self, graphdef: Any, params: Params, iteration: int, writer: Writer, best: dict[str, float] | None
    ) -> dict[str, float]:
        """The best scores up to this iteration, with their `iteration`."""
        scores = self._evaluate(whole(graphdef, params))
        writer.scalars(iteration, {f"eval/{name}": value for name, value in scores.items()})
        if best is not None and scores["combined"] <= best["combined"]:
            return best
        best = scores | {"iteration": iteration}
        if self._ppo.keep == "best":
            save_params(self.final, params, best)
        return best
