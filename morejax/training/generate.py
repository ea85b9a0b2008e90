"""Decode many prompts with few compiled shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import jax
import numpy as np
from flax import nnx

from morejax.models.split import Params
from morejax.rollout import SamplerConfig, compile_sampler
from morejax.training.batching import left_pad
from morejax.training.progress import Progress

Ids = tuple[int, ...]


class Generator:
    """Samples replies for prompts of any length: prompts are grouped by length, so a few shapes serve all.

    Args:
        graphdef: model with `trunk` and `logits`.
        config: sampler; `with_settings` makes variants that share nothing but the model.
        batch: prompts of a call; the last one is filled up.
        step: prompt lengths are rounded up to a multiple of this, and each such length is compiled once.
        between: called between two batches; may raise to stop.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        config: SamplerConfig,
        *,
        batch: int = 128,
        step: int = 32,
        between: Callable[[], None] = lambda: None,
    ):
        self.graphdef, self.config, self.batch, self.step, self.between = graphdef, config, batch, step, between
        self._sampler = compile_sampler(graphdef, config)

    def with_settings(self, **changes) -> Generator:
        """A generator with other sampler settings."""
        config = replace(self.config, **changes)
        return Generator(self.graphdef, config, batch=self.batch, step=self.step, between=self.between)

    def __call__(
        self, params: Params, prompts: Sequence[Ids], *, seed: int = 0, progress: Progress | None = None
    ) -> list[Ids]:
        """The tokens of every reply, the end token included, in the order of the prompts.

        With `config.samples` above 1, so many replies to each prompt stand behind one another.

        Args:
            params: the model's.
            prompts: token ids; none may be empty.
            seed: of the sampler; has no effect at temperature 0.
            progress: updated with the number of replies done.
        """
        order = sorted(range(len(prompts)), key=lambda index: -(-len(prompts[index]) // self.step))
        samples = self.config.samples
        replies: list[Ids] = [()] * (len(prompts) * samples)
        done = 0
        for number, rows in enumerate(self._groups(prompts, order)):
            self.between()
            length = -(-max(len(prompts[row]) for row in rows) // self.step) * self.step
            filled = [prompts[row] for row in rows] + [prompts[rows[0]]] * (self.batch - len(rows))
            tokens, mask = left_pad(filled, length, self.config.pad_id)
            key = jax.random.fold_in(jax.random.key(seed), number)
            sample = self._sampler(params, tokens, mask, key)
            drawn, valid = np.asarray(sample.tokens), np.asarray(sample.mask)
            for place, row in enumerate(rows):
                for which in range(samples):
                    here = place * samples + which
                    replies[row * samples + which] = tuple(int(token) for token in drawn[here][valid[here]])
            done += len(rows)
            if progress is not None:
                progress.update(done, tokens=int(valid[: len(rows) * samples].sum()))
        return replies

    def _groups(self, prompts: Sequence[Ids], order: list[int]) -> list[list[int]]:
        """Runs of at most `batch` prompts whose rounded length is the same; less than half a batch of one length goes
        with the next longer ones, since a batch that has to be filled up costs more than padding does."""
        groups: list[list[int]] = []
        last = None
        for row in order:
            length = -(-len(prompts[row]) // self.step)
            full = not groups or len(groups[-1]) == self.batch
            if full or (length != last and 2 * len(groups[-1]) >= self.batch):
                groups.append([])
            groups[-1].append(row)
            last = length
        return groups
