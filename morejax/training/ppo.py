"""The PPO stage: sample replies to whole dialogues, score them, take one compiled step; again."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from morejax.compile import compile_step
from morejax.config import StepConfig
from morejax.models.split import Params, merge
from morejax.rollout import Rollout, Sample, SamplerConfig, compile_sampler, token_logp
from morejax.sharding import rollout_sharding, state_shardings
from morejax.state import TrainState
from morejax.tasks.streams import NonFiniteStream
from morejax.training.batching import left_pad
from morejax.training.checkpoint import Checkpoints, save_params
from morejax.training.interrupt import StopRequest
from morejax.training.language_model import NonFinite
from morejax.training.progress import Progress
from morejax.training.reward_heads import judge, pack
from morejax.training.writers import open_writers

if TYPE_CHECKING:
    from morejax.tasks.multiwoz.task import MultiwozTask, TurnPrompts

Ids = tuple[int, ...]


@dataclass(frozen=True)
class PPOConfig:
    """The loop around the step."""

    iterations: int = 60
    """Rollouts, each followed by one train step."""
    turns: int = 256
    """S: rows of a rollout, filled with the turns of whole dialogues."""
    temperature: float = 1.0
    """Of sampling; the policy trains on the tempered distribution it samples from only at 1."""
    ref_context: Literal["reasoned", "direct"] = "reasoned"
    """The reference is the scaffold reading its acts, or the supervised model reading what the policy reads."""
    split: str = ""
    """Dialogues to sample from; empty takes `--fit` (and `gold_fit` alone where the corpus names one)."""
    eval_every: int = 10
    """Iterations between two greedy evaluations on `--select`."""
    eval_dialogues: int = 100
    """Dialogues of each such evaluation; 0 takes all."""
    checkpoint_every: int = 10
    """Iterations between two checkpoints."""
    keep: Literal["best", "last"] = "best"
    """Final policy: best Combined of the evaluations on `--select`, or the last."""

    def __post_init__(self) -> None:
        if self.temperature != 1.0:
            raise ValueError(
                f"--ppo.temperature must be 1, not {self.temperature}: the step takes the sampler's log-probabilities "
                "for the policy's own"
            )
        if self.ref_context not in ("reasoned", "direct"):
            raise ValueError(f"--ppo.ref-context must be reasoned or direct, not {self.ref_context!r}")


@dataclass(frozen=True)
class Frozen:
    """Models that PPO reads and never changes."""

    graphdef: nnx.GraphDef
    """Structure of reference and language model (no critic)."""
    reference: Params
    """The scaffold, or the supervised model (`ref_context`)."""
    language_model: Params
    """The supervised model: fluency, and the trunk of the naturalness head."""
    head_graphdef: nnx.GraphDef
    head: Params


@dataclass(frozen=True)
class Shapes:
    """Static sizes of a rollout: rows, context, reasoned context, reply."""

    turns: int
    context: int
    reasoned: int
    reply: int


def compile_assess(graphdef: nnx.GraphDef, frozen: Frozen, step: StepConfig, shapes: Shapes):
    """A jitted (params, values, reference, language model, head, tokens, mask, ref tokens, ref mask) -> dict of arrays.

    values f32[S, T, H], computed here unless the sampler gave them; logp_ref f32[S, T]; ref_logps f32[S, T, V] when the
    KL is exact; lm_logp, natural f32[S].
    """

    def assess(params, values, reference, language_model, head, tokens, mask, ref_tokens, ref_mask):
        if values is None:
            model = merge(graphdef, params)
            values = model.values(tokens, mask, model.hidden(tokens, mask))[:, shapes.context - 1 : -1]
        ref = merge(frozen.graphdef, reference)
        ref_hidden = ref.hidden(ref_tokens, ref_mask)[:, shapes.reasoned - 1 : -1]
        ref_logps = jax.nn.log_softmax(ref.logits(ref_hidden), axis=-1)
        lm_logp, natural = judge(
            frozen.graphdef, frozen.head_graphdef, language_model, head, tokens, mask, shapes.context
        )
        out = {
            "values": values,
            "logp_ref": token_logp(ref_logps, tokens[:, shapes.context :]),
            "lm_logp": lm_logp,
            "natural": natural,
        }
        return out | ({"ref_logps": ref_logps} if step.kl == "full" else {})

    return jax.jit(assess)


def plan(sizes: Sequence[int], turns: int, seed: int) -> Iterator[list[int]]:
    """Endless batches of dialogue numbers with at most `turns` turns each; every epoch in a new random order.

    A pure function of its arguments: skipping n batches resumes after n iterations.

    Raises:
        ValueError: a dialogue alone has more turns than a batch holds.
    """
    if max(sizes) > turns:
        raise ValueError(f"--ppo.turns {turns} does not hold the longest dialogue ({max(sizes)} turns)")
    epoch, batch, filled = 0, [], 0
    while True:
        for number in np.random.default_rng([seed, epoch]).permutation(len(sizes)):
            if filled + sizes[number] > turns:
                yield batch
                batch, filled = [], 0
            batch.append(int(number))
            filled += sizes[number]
        epoch += 1


def build_rollout(
    task: MultiwozTask,
    prompts: Sequence[TurnPrompts],
    sample: Sample,
    tokens: np.ndarray,
    mask: np.ndarray,
    context_mask: np.ndarray,
    assessed: dict[str, Any],
    step: StepConfig,
    shapes: Shapes,
) -> tuple[Rollout, int]:
    """Score the sampled replies on the host and put everything into one `Rollout`; rows beyond the prompts are empty.

    Returns:
        The rollout and the number of reply tokens in it.
    """
    rows = len(prompts)
    drawn, valid = np.asarray(sample.tokens)[:rows], np.asarray(sample.mask)[:rows]
    replies = [tuple(int(t) for t in ids[ok]) for ids, ok in zip(drawn, valid, strict=True)]
    batch = task.sampled(
        prompts, replies, np.asarray(assessed["lm_logp"])[:rows], np.asarray(assessed["natural"])[:rows]
    )
    streams = task.rewards(batch, shapes.reply)
    room = shapes.turns - rows

    def padded(array):
        return np.pad(array, [(0, room)] + [(0, 0)] * (array.ndim - 1))

    resp_mask = np.asarray(sample.mask) & (np.arange(shapes.turns) < rows)[:, None]
    split = len(step.objectives)
    rewards = padded(streams.rewards)
    return Rollout(
        tokens=tokens,
        context_mask=context_mask,
        resp_mask=resp_mask,
        logp_old=sample.logp,
        values_old=assessed["values"],
        objectives=rewards[..., :split],
        constraints=rewards[..., split:],
        applies=padded(streams.applies),
        logp_ref=assessed["logp_ref"],
        ref_logps=assessed.get("ref_logps"),
        scores=padded(streams.scores),
        score_weights=padded(streams.weights),
    ), int(resp_mask.sum())


class Sampler:
    """Prompts to rollouts, with everything that is compiled once."""

    def __init__(self, task, state: TrainState, frozen: Frozen, step: StepConfig, shapes: Shapes, ppo, place):
        self.reasoned = ppo.ref_context == "reasoned"
        if not self.reasoned:
            # The reference then reads the policy's own context.
            shapes = replace(shapes, reasoned=shapes.context)
        self.task, self.frozen, self.step, self.shapes, self.place = task, frozen, step, shapes, place
        settings = SamplerConfig(
            max_new_tokens=shapes.reply,
            temperature=ppo.temperature,
            eos_id=task.eos_id,
            pad_id=task.pad_id,
            values="trunk" not in state.params["value"],
        )
        self._sample = compile_sampler(state.graphdef, settings)
        self._assess = compile_assess(state.graphdef, frozen, step, shapes)

    def __call__(self, params: Params, prompts: Sequence[TurnPrompts], key: jax.Array) -> tuple[Rollout, int]:
        """One rollout of the policy on these prompts."""
        shapes, pad = self.shapes, self.task.pad_id
        direct = [prompt.direct for prompt in prompts]
        direct += [direct[0]] * (shapes.turns - len(prompts))
        context, context_mask = left_pad(direct, shapes.context, pad)
        sample = self._sample(params, *self.place((context, context_mask)), key)
        drawn, valid = np.asarray(sample.tokens), np.asarray(sample.mask)
        tokens = np.concatenate([context, drawn], axis=1)
        mask = np.concatenate([context_mask, valid], axis=1)
        replies = [tuple(ids[ok]) for ids, ok in zip(drawn, valid, strict=True)]
        if self.reasoned:
            sources = [prompt.reasoned for prompt in prompts]
            sources += [sources[0]] * (shapes.turns - len(prompts))
            ref_tokens, ref_mask = pack(sources, replies, shapes.reasoned, shapes.reply, pad, shapes.turns)
        else:
            ref_tokens, ref_mask = tokens, mask
        frozen = self.frozen
        placed = self.place((tokens, mask, ref_tokens, ref_mask))
        assessed = self._assess(params, sample.values, frozen.reference, frozen.language_model, frozen.head, *placed)
        return build_rollout(self.task, prompts, sample, tokens, mask, context_mask, assessed, self.step, shapes)


def fit(
    task: MultiwozTask,
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
    mesh: jax.sharding.Mesh | None = None,
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
        run_dir: the run's folder; best or last parameters go to checkpoints/ppo-final.
        seed: of the order of dialogues.
        stop: flag of the signal handler.
        evaluate: greedy scores of parameters on the selection split.
        mesh: devices; None uses one.

    Returns:
        {"best": {...}, "first": metrics of the first iteration, "last": of the last}.

    Raises:
        NonFinite: a number is NaN or infinite; names stream and iteration. The last checkpoint is from before.
        Interrupted: after a signal, once a checkpoint is written.
    """
    place: Callable[[Any], Any] = lambda tree: tree  # noqa: E731
    # Every leaf placed: one that jit is free to move costs a second compilation.
    state = jax.device_put(state, jax.devices()[0] if mesh is None else state_shardings(mesh, state))
    if mesh is not None:
        place = partial(jax.device_put, device=rollout_sharding(mesh))
    checkpoints = Checkpoints(run_dir / "checkpoints" / "ppo", keep=2)
    start, restored = 0, None
    progress: dict[str, Any] = {"best": None, "first": None, "last": None}
    if checkpoints.latest() is not None:
        state, meta = checkpoints.restore(state)
        start = restored = meta["iteration"]
        progress = meta["progress"]
    sampler = Sampler(task, state, frozen, step, shapes, ppo, place)
    train = compile_step(step, mesh=mesh, state=state if mesh is not None else None)
    batches = plan([len(turns) for turns in prompts], shapes.turns, seed)
    for _ in range(start):
        next(batches)
    final = run_dir / "checkpoints" / "ppo-final"
    pending: tuple[Any, ...] | None = None

    def flush() -> None:
        if pending is not None:
            progress["last"] = _log(writer, bar, *pending)
            progress["first"] = progress["first"] or progress["last"]

    with (
        contextlib.closing(checkpoints),
        open_writers(run_dir, "ppo", restored_step=restored) as writer,
        Progress("ppo", ppo.iterations, start=start, every_seconds=20) as bar,
    ):
        if start == 0 and ppo.eval_every:
            progress["best"] = _evaluate(evaluate, state.params, 0, writer, final, None, ppo)
        for iteration in range(start + 1, ppo.iterations + 1):
            began = time.monotonic()
            rows = [prompt for number in next(batches) for prompt in prompts[number]]
            key, sample_key = jax.random.split(state.key)
            try:
                rollout, count = sampler(state.params, rows, sample_key)
            except NonFiniteStream as error:
                raise NonFinite(f"ppo, iteration {iteration}: {error}; the checkpoint before it is kept") from error
            state, metrics = train(state.replace(key=key), rollout)
            # Read the numbers of the iteration before: the device is never waited for.
            flush()
            pending = (iteration, metrics, count, began)
            last = iteration == ppo.iterations
            due = ppo.eval_every and (iteration % ppo.eval_every == 0 or last)
            save = iteration % ppo.checkpoint_every == 0 or last
            # Never write, or choose, a state whose numbers were not looked at.
            if due or save:
                flush()
                pending = None
            if due:
                progress["best"] = _evaluate(evaluate, state.params, iteration, writer, final, progress["best"], ppo)
            # Read once, after the evaluation: whoever leaves has saved.
            stopping = bool(stop)
            if save or stopping:
                flush()
                pending = None
                checkpoints.save(iteration, state, {"iteration": iteration, "progress": progress})
            if stopping:
                stop.raise_if_set()
        if ppo.keep == "last" or not ppo.eval_every:
            save_params(final, state.params, {"iteration": ppo.iterations})
    return progress


def _evaluate(evaluate, params, iteration, writer, final, best, ppo) -> dict[str, float]:
    """Score greedily, log, and keep the parameters when they are the best so far."""
    scores = evaluate(params)
    writer.scalars(iteration, {f"eval/{name}": value for name, value in scores.items()})
    if best is None or scores["combined"] > best["combined"]:
        best = scores | {"iteration": iteration}
        if ppo.keep == "best":
            save_params(final, params, best)
    return best


def _log(writer, bar, iteration: int, metrics: dict[str, jax.Array], count: int, began: float) -> dict[str, float]:
    """Fetch the metrics of an iteration, check and write them."""
    numbers = {name: float(value) for name, value in jax.device_get(metrics).items()}
    seconds = time.monotonic() - began
    check_finite(iteration, numbers)
    numbers |= {"response_tokens": float(count), "tokens_per_s": count / seconds}
    writer.scalars(iteration, numbers)
    shown = {name[2:]: value for name, value in numbers.items() if name.startswith("J/")}
    bar.update(iteration, shown | {"kl": numbers["kl"]}, tokens=count)
    return numbers


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


def static_shapes(prompts: Sequence[Sequence[TurnPrompts]], turns: int, reply: int, multiple: int = 16) -> Shapes:
    """The smallest static sizes, in multiples of 16, that hold every prompt."""

    def longest(which: str) -> int:
        size = max(len(getattr(prompt, which)) for dialogue in prompts for prompt in dialogue)
        return -(-size // multiple) * multiple

    return Shapes(turns, longest("direct"), longest("reasoned"), reply)


def as_arrays(rollout: Rollout) -> Rollout:
    """The rollout with every leaf on the device (for callers that keep one)."""
    return jax.tree.map(jnp.asarray, rollout)
