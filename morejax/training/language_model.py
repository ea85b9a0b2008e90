"""Maximum likelihood on the target spans of token sequences: the loop behind `supervised` and `scaffold`."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx, struct

from morejax.models.dropout import Dropout
from morejax.models.response import response_hidden
from morejax.models.split import Params, merge
from morejax.optimizers import Name, kernels, optimizer
from morejax.rollout import token_logp
from morejax.training import batching
from morejax.training.batching import SequenceBatch, Sequences
from morejax.training.checkpoint import Checkpoints
from morejax.training.interrupt import StopRequest
from morejax.training.placement import ONE_DEVICE, Placement
from morejax.training.progress import Progress
from morejax.training.writers import open_writers


@dataclass(frozen=True)
class LanguageModelConfig:
    """Maximum-likelihood training."""

    epochs: float = 2.0
    """Passes over the examples; fractions are allowed."""
    tokens_per_batch: int = 4096
    """Tokens of a batch, padding included."""
    bucket: int = 32
    """Lengths of sequences are rounded up to a multiple of it: larger means more padding, and fewer shapes, each of
    which is compiled once."""
    learning_rate: float = 2e-3
    """Peak of the warmup-cosine schedule."""
    warmup: float = 0.05
    """Share of the steps that warms up."""
    optimizer: Name = "adam"
    """Rule of the updates; muon learns from scratch in fewer steps."""
    weight_decay: float = 0.05
    """Decay of matrices, decoupled from the gradient (AdamW)."""
    token_dropout: float = 0.0
    """Probability with which a context token is hidden."""
    dropout: float = 0.0
    """Probability with which an entry of the embeddings, and of what a block adds to them, is dropped (in training
    alone): for more passes over few examples than a model can make before it learns them by heart."""
    max_grad_norm: float = 1.0
    """Global norm to which gradients are clipped."""
    checkpoint_every: int = 200
    """Steps between two checkpoints."""
    log_every: int = 10
    """Steps between two lines of the log."""

    def __post_init__(self) -> None:
        for name in ("epochs", "tokens_per_batch", "bucket", "learning_rate", "max_grad_norm"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        for name in ("token_dropout", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), not {getattr(self, name)}")
        optimizer(self.optimizer)  # refuses what it does not know


@struct.dataclass
class LanguageModelState:
    """Everything that training changes."""

    params: Params
    opt_state: optax.OptState
    step: jax.Array


def make_optimizer(config: LanguageModelConfig, steps: int) -> optax.GradientTransformation:
    """Clipping, the optimizer by name, decay of matrices, warmup, and cosine decay to a twentieth."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0,
        config.learning_rate,
        max(1, int(config.warmup * steps)),
        max(2, steps),
        0.05 * config.learning_rate,
    )
    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optimizer(config.optimizer),
        optax.add_decayed_weights(config.weight_decay, mask=kernels),
        optax.scale_by_learning_rate(schedule),
    )


def target_loss(
    graphdef: nnx.GraphDef,
    params: Params,
    tokens: jax.Array,
    mask: jax.Array,
    targets: jax.Array,
    picked: jax.Array | None = None,
    dropout: Dropout | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Mean negative log-likelihood of the targets, nats per token, and their number.

    Args:
        tokens, mask: i32[B, L], bool[B, L].
        targets: bool[B, R], which of the last R tokens are predicted; the head runs on those positions only.
        picked: i32[B, K], on which of the R the head runs, all targets among them; None: on all.
        dropout: noise of this pass; None: none.
    """
    model = merge(graphdef, params)
    span = targets.shape[1]
    hidden, _ = response_hidden(model, tokens, mask, tokens.shape[1] - span, dropout)
    tokens = tokens[:, -span:]
    if picked is not None:
        hidden = jnp.take_along_axis(hidden, picked[..., None], axis=1)
        tokens, targets = (jnp.take_along_axis(array, picked, axis=1) for array in (tokens, targets))
    logps = jax.nn.log_softmax(model.logits(hidden), axis=-1)
    nll = -token_logp(logps, tokens)
    count = targets.sum()
    return jnp.where(targets, nll, 0.0).sum() / jnp.maximum(count, 1), count


def fresh_state(params: Params, tx: optax.GradientTransformation, placement: Placement) -> LanguageModelState:
    """A state of copies of the parameters (it will be donated, the caller keeps its own), made where it is to lie."""

    def make(params: Params) -> LanguageModelState:
        return LanguageModelState(jax.tree.map(jnp.copy, params), tx.init(params), jnp.int32(0))

    return jax.jit(make, out_shardings=placement.of_state(jax.eval_shape(make, params)))(params)


def compile_update(
    graphdef: nnx.GraphDef,
    tx: optax.GradientTransformation,
    shardings: Any = None,
    *,
    dropout: float = 0.0,
    seed: int = 0,
):
    """(state, tokens, mask, targets[, picked]) -> (state, loss, gradient norm), jitted, the state donated.

    Args:
        graphdef, tx: model and optimizer.
        shardings: of the new state, where the old one must lie; None leaves them to the compiler.
        dropout: its rate.
        seed: of dropout; with the number of the step it gives the noise, so that a resumed run has the same.
    """

    @partial(jax.jit, donate_argnums=0, out_shardings=None if shardings is None else (shardings, None, None))
    def update(state: LanguageModelState, *batch):
        noise = Dropout(jax.random.fold_in(jax.random.key(seed), state.step), dropout) if dropout else None

        def objective(params):
            return target_loss(graphdef, params, *batch, dropout=noise)[0]

        loss, grads = jax.value_and_grad(objective)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        # Of the structure of its first argument, whatever that is: optax names no type for it.
        params = cast(Params, optax.apply_updates(state.params, updates))
        return LanguageModelState(params, opt_state, state.step + 1), loss, optax.global_norm(grads)

    return update


def evaluate_loss(
    graphdef: nnx.GraphDef,
    params: Params,
    sequences: Sequences,
    config: LanguageModelConfig,
    pad: int,
    placement: Placement = ONE_DEVICE,
) -> float:
    """Mean negative log-likelihood per target token over all sequences, nats."""
    loss_of = _compiled_loss(graphdef)
    size, rows = config.tokens_per_batch, _batch_rows(placement)
    groups = batching.bucket(sequences, size, step=config.bucket, rows=rows)
    batches = batching.epoch_batches(sequences, groups, size, seed=0, epoch=0, pad_id=pad, rows=rows)
    parts = [loss_of(params, *placement.rows(batch.arrays)) for batch in batches]
    losses, counts = np.array([[float(loss), float(count)] for loss, count in parts]).T
    return float((losses * counts).sum() / counts.sum())


@partial(jax.jit, static_argnums=0)
def _loss(graphdef, params, *batch):
    return target_loss(graphdef, params, *batch)


def _compiled_loss(graphdef: nnx.GraphDef) -> Callable[..., tuple[jax.Array, jax.Array]]:
    return partial(_loss, graphdef)


def _batch_rows(placement: Placement) -> int:
    """Batches are multiples of 8 rows, and of the parts that rows are cut into: up to 8, the same batches anywhere."""
    return math.lcm(8, placement.row_shards)


class NonFinite(FloatingPointError):
    """A loss or gradient is NaN or infinite; the message names stage, step and what."""


def fit(
    stage: str,
    graphdef: nnx.GraphDef,
    params: Params,
    train: Sequences,
    dev: Sequences,
    config: LanguageModelConfig,
    *,
    run_dir: Path,
    seed: int,
    pad_id: int,
    drop_id: int,
    stop: StopRequest,
    placement: Placement = ONE_DEVICE,
) -> tuple[Params, dict[str, float]]:
    """Train on `train`, report the loss on `dev`; resumes from the stage's newest checkpoint.

    Args:
        stage: name in logs, metrics and checkpoints.
        graphdef, params: the model.
        train, dev: what to learn from and what to watch.
        config: numbers.
        run_dir: the run's folder.
        seed: of the order of examples.
        pad_id, drop_id: padding, and what hides a dropped token.
        stop: flag of the signal handler.
        placement: where state and batches lie.

    Returns:
        The trained parameters and {"dev_loss", "tokens", "steps"}.

    Raises:
        NonFinite: loss or gradient is NaN or infinite; the last checkpoint is from before.
        Interrupted: after a signal, once a checkpoint is written.
    """
    rows = _batch_rows(placement)
    groups = batching.bucket(train, config.tokens_per_batch, step=config.bucket, rows=rows)
    per_epoch = batching.batches_per_epoch(groups, config.tokens_per_batch, rows)
    steps = max(1, math.ceil(config.epochs * per_epoch))
    tx = make_optimizer(config, steps)
    state = fresh_state(params, tx, placement)
    checkpoints = Checkpoints(run_dir / "checkpoints" / stage, keep=1)
    start, seen, restored = 0, 0, None
    if checkpoints.latest() is not None:
        state, meta = checkpoints.restore(state)
        start = restored = meta["step"]
        seen = meta["tokens"]
    shardings = None if placement.mesh is None else placement.of_state(state)
    update = compile_update(graphdef, tx, shardings, dropout=config.dropout, seed=seed)
    batches = _from_step(train, groups, config, per_epoch, start, seed, pad_id, drop_id, rows)
    # Several processes ask each other for signals, which waits for the devices: only when the loop waits anyway.
    look_every = 1 if jax.process_count() == 1 else config.log_every
    began, before, shown, pending = time.monotonic(), seen, seen, None

    def flush() -> None:
        if pending is not None:
            _log(writer, stage, pending, config, steps, (seen - before) / (time.monotonic() - began))

    with (
        contextlib.closing(checkpoints),
        open_writers(run_dir, stage, restored_step=restored) as writer,
        Progress(stage, steps, start=start) as bar,
    ):
        for step, batch in enumerate(itertools.islice(batches, steps - start), start + 1):
            state, loss, norm = update(state, *placement.rows(batch.arrays))
            seen += batch.real_tokens
            # Read the numbers of the step before: the device is never waited for.
            flush()
            pending = (step, loss, norm)
            if step % config.log_every == 0 or step == steps:
                bar.update(step, {"loss": float(loss)}, tokens=seen - shown)
                shown = seen
            # Read once: a signal that comes between saving and leaving waits for the next step.
            stopping = step % look_every == 0 and bool(stop)
            if step % config.checkpoint_every == 0 or stopping:
                # The log is whole up to a checkpoint: a resumed one has no gap.
                flush()
                pending = None
                _check_finite(stage, step, loss, norm)
                checkpoints.save(step, state, {"step": step, "tokens": seen})
            if stopping:
                stop.raise_if_set()
        flush()
        dev_loss = evaluate_loss(graphdef, state.params, dev, config, pad_id, placement)
        writer.scalars(steps, {"dev_loss": dev_loss})
        bar.write(f"{stage}: dev loss {dev_loss:.4f} nats per target token after {steps} steps")
    return state.params, {"dev_loss": dev_loss, "tokens": float(seen), "steps": float(steps)}


def _from_step(train, groups, config, per_epoch, start, seed, pad_id, drop_id, rows) -> Iterator[SequenceBatch]:
    for epoch in itertools.count(start // per_epoch):
        skip = start % per_epoch if epoch == start // per_epoch else 0
        yield from batching.epoch_batches(
            train,
            groups,
            config.tokens_per_batch,
            seed=seed,
            epoch=epoch,
            pad_id=pad_id,
            drop=config.token_dropout,
            drop_id=drop_id,
            start=skip,
            rows=rows,
        )


def _log(writer, stage, pending, config, steps, rate) -> None:
    step, loss, norm = pending
    if step % config.log_every == 0 or step in (1, steps):
        _check_finite(stage, step, loss, norm)
        writer.scalars(step, {"loss": float(loss), "grad_norm": float(norm), "tokens_per_s": rate})


def _check_finite(stage: str, step: int, loss: jax.Array, norm: jax.Array) -> None:
    for what, value in (("loss", float(loss)), ("gradient norm", float(norm))):
        if not math.isfinite(value):
            raise NonFinite(
                f"{stage}, step {step}: the {what} is {value}; the checkpoint before it is kept (a run with a lower "
                f"--{stage}.learning-rate needs another --out)"
            )
