"""The PPO stage where rewards run on the device: every iteration is one compiled program (`morejax.iterate`)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from morejax.config import StepConfig
from morejax.iterate import Frozen, Prompts, RewardFn, compile_iteration
from morejax.models.split import Params, whole
from morejax.rollout import SamplerConfig
from morejax.state import TrainState
from morejax.training.checkpoint import Checkpoints, save_params
from morejax.training.interrupt import StopRequest
from morejax.training.placement import ONE_DEVICE, Placement
from morejax.training.ppo import LateLog
from morejax.training.ppo_config import PPOConfig
from morejax.training.progress import Progress
from morejax.training.writers import Writer, open_writers


def fit(
    state: TrainState,
    frozen: Frozen,
    prompts: Callable[[int], Prompts],
    reward_fn: RewardFn,
    step: StepConfig,
    sampler: SamplerConfig,
    ppo: PPOConfig,
    *,
    run_dir: Path,
    stop: StopRequest,
    evaluate: Callable[[Params], dict[str, float]],
    placement: Placement = ONE_DEVICE,
) -> dict[str, Any]:
    """Run the loop; resumes from the newest checkpoint of the stage.

    Args:
        state: fresh train state.
        frozen: reference, and what rewards read.
        prompts: iteration, from 1, to what it answers; a pure function, so that a resumed run goes on alike.
        reward_fn: judges replies.
        step, sampler: static settings.
        ppo: numbers of the loop.
        run_dir: the run's folder; best or last trained parameters go to checkpoints/ppo-final.
        stop: flag of the signal handler.
        evaluate: greedy scores of parameters, `combined` among them, which the best is chosen by.
        placement: where state and prompts lie.

    Returns:
        {"best": {...}, "first": metrics of the first iteration, "last": of the last}.

    Raises:
        NonFinite: a number is NaN or infinite. The last checkpoint is from before.
        Interrupted: after a signal, once a checkpoint is written.
    """
    state = placement.state(state)
    checkpoints = Checkpoints(run_dir / "checkpoints" / "ppo", keep=2)
    start, restored = 0, None
    progress: dict[str, Any] = {"best": None, "first": None, "last": None}
    if checkpoints.latest() is not None:
        kept, meta = checkpoints.restore(state.replace(frozen=None))
        state = kept.replace(frozen=state.frozen)
        start = restored = meta["iteration"]
        progress = meta["progress"]
    advance = compile_iteration(reward_fn, step, sampler, mesh=placement.mesh, state=state)
    chooser = Chooser(run_dir / "checkpoints" / "ppo-final", ppo, evaluate)
    with (
        contextlib.closing(checkpoints),
        open_writers(run_dir, "ppo", restored_step=restored) as writer,
        Progress("ppo", ppo.iterations, start=start, every_seconds=20) as bar,
    ):
        log = LateLog(writer, bar, progress)
        if start == 0 and ppo.eval_every:
            progress["best"] = chooser(state, 0, writer, None)
        for iteration in range(start + 1, ppo.iterations + 1):
            log.begin(iteration)
            state, metrics = advance(state, placement.rows(prompts(iteration)), frozen)
            log.add(metrics, metrics["response_tokens"])
            last = iteration == ppo.iterations
            due = bool(ppo.eval_every) and (iteration % ppo.eval_every == 0 or last)
            save = iteration % ppo.checkpoint_every == 0 or last
            # Never write, or choose, a state whose numbers were not looked at.
            if due or save:
                log.flush()
            if due:
                progress["best"] = chooser(state, iteration, writer, progress["best"])
            stopping = bool(stop)
            if save or stopping:
                log.flush()
                checkpoints.save(iteration, state.replace(frozen=None), {"iteration": iteration, "progress": progress})
            if stopping:
                stop.raise_if_set()
        if ppo.keep == "last" or not ppo.eval_every:
            save_params(chooser.final, state.params, {"iteration": ppo.iterations})
    return progress


class Chooser:
    """Scores the policy greedily, logs that, and keeps the trained parameters when they are the best so far.

    Args:
        final: where they go.
        ppo: whether the best are kept.
        evaluate: scores of parameters.
    """

    def __init__(self, final: Path, ppo: PPOConfig, evaluate: Callable[[Params], dict[str, float]]):
        self.final, self._ppo, self._evaluate = final, ppo, evaluate

    def __call__(
        self, state: TrainState, iteration: int, writer: Writer, best: dict[str, float] | None
    ) -> dict[str, float]:
        """The best scores up to this iteration, with their `iteration`."""
        scores = self._evaluate(whole(state.graphdef, state.params))
        writer.scalars(iteration, {f"eval/{name}": value for name, value in scores.items()})
        if best is not None and scores["combined"] <= best["combined"]:
            return best
        best = scores | {"iteration": iteration}
        if self._ppo.keep == "best":
            save_params(self.final, state.params, best)
        return best
