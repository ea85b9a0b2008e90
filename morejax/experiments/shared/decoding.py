"""Replies written by a run's language models."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from flax import nnx

from morejax import hosts
from morejax.models.split import Params
from morejax.rollout import SamplerConfig
from morejax.training.generate import Generator
from morejax.training.interrupt import StopRequest
from morejax.training.placement import ONE_DEVICE, Placement
from morejax.training.progress import Progress
from morejax.training.task import Ids

Decode = Callable[[Sequence[Ids]], list[Ids]]
Split = Callable[[Ids], tuple[Ids, Ids]]
"""What a model that reasons has written, as reasoning and reply."""


class PlacedGenerator(Generator):
    """A `Generator` whose batches are cut over the devices of all processes, which make each batch together."""

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        config: SamplerConfig,
        placement: Placement,
        *,
        step: int,
        batch: int,
        between: Callable[[], None],
    ):
        super().__init__(graphdef, config, batch=placement.whole_rows(batch), step=step, between=between)
        sample = placement.sampler(self._sampler)
        if placement.mesh is not None:
            self._sampler = lambda *arguments: hosts.to_host(sample(*arguments))


class Decoding:
    """Prompts to replies, for any parameters of one structure; every sampler is compiled once.

    Args:
        graphdef: the model, without a critic.
        task: tokens.
        max_reply: most tokens of a reply.
        reasoning: token that opens the reasoning of a model that reasons, most tokens of it, and what cuts it off.
        stop: flag of the signal handler. Decoding is left at once, its stage starts again, except `uninterrupted`.
        placement: where parameters lie and prompts are cut.
        step: prompts are padded to multiples of this, and each such length is compiled once.
        batch: prompts of a call.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        task: Any,
        max_reply: int,
        reasoning: tuple[int, int, Split],
        stop: StopRequest,
        placement: Placement = ONE_DEVICE,
        step: int = 32,
        batch: int = 128,
    ):
        self._graphdef, self._task, self._max_reply, self._stop = graphdef, task, max_reply, stop
        self._opens, self._max_reasoning, self._split = reasoning
        self._placement, self._step, self._batch = placement, step, batch
        self._may_stop = True

    @contextlib.contextmanager
    def uninterrupted(self) -> Iterator[None]:
        """Within the block a signal does not end decoding: the caller saves first."""
        self._may_stop = False
        try:
            yield
        finally:
            self._may_stop = True

    def _between_batches(self) -> None:
        if self._may_stop:
            self._stop.raise_if_set()

    def generator(self, **settings: Any) -> Generator:
        """Greedy replies, but for other settings of the sampler."""
        task = self._task
        greedy = SamplerConfig(self._max_reply, temperature=0.0, eos_id=task.eos_id, pad_id=task.pad_id)
        return PlacedGenerator(
            self._graphdef,
            replace(greedy, **settings),
            self._placement,
            step=self._step,
            batch=self._batch,
            between=self._between_batches,
        )

    @cached_property
    def direct(self) -> Generator:
        """Greedy replies."""
        return self.generator()

    @cached_property
    def reasoned(self) -> Generator:
        """Greedy reasoning with the replies behind it."""
        return self.generator(max_new_tokens=self._max_reply + self._max_reasoning)

    @cached_property
    def _samples(self) -> Generator:
        return self.generator(temperature=1.0)

    def answer(self, params: Params, label: str = "") -> Decode:
        """Greedy replies of a model that answers directly; a label shows a progress bar."""
        return lambda prompts: _decode(self.direct, params, prompts, label)

    def reason_and_answer(self, params: Params, label: str = "", **settings: Any) -> Decode:
        """Greedy replies of a model that writes its reasoning first, but for other settings of the sampler."""
        longest = self._max_reply + self._max_reasoning
        writer = self.generator(max_new_tokens=longest, **settings) if settings else self.reasoned

        def generate(prompts: Sequence[Ids]) -> list[Ids]:
            opened = [(*prompt[:-1], self._opens) for prompt in prompts]
            written = _decode(writer, params, opened, label)
            return [self._split(ids)[1][: self._max_reply] for ids in written]

        return generate

    def sample(self, params: Params, prompts: Sequence[Ids], seed: int, label: str) -> list[Ids]:
        """Replies drawn at temperature 1."""
        return _decode(self._samples, params, prompts, label, seed)


def _decode(generator: Generator, params: Params, prompts: Sequence[Ids], label: str, seed: int = 0) -> list[Ids]:
    if not label:
        return generator(params, prompts, seed=seed)
    with Progress(label, len(prompts)) as bar:
        return generator(params, prompts, seed=seed, progress=bar)
