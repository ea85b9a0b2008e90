"""Replies and dialogue states written by the run's language models."""

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
from morejax.tasks.multiwoz import tokenizer as vocabulary
from morejax.tasks.multiwoz.examples import ContextConfig, Ids
from morejax.tasks.multiwoz.task import MultiwozTask
from morejax.training.generate import Generator
from morejax.training.interrupt import StopRequest
from morejax.training.placement import ONE_DEVICE, Placement
from morejax.training.progress import Progress

MAX_ACTS = 24
"""Tokens that the scaffold may write before it answers."""

Decode = Callable[[Sequence[Ids]], list[Ids]]
Predictions = dict[str, list[dict[str, Any]]]
"""Dialogue id -> one {"response", ...} per turn: the standard format."""


class PlacedGenerator(Generator):
    """A `Generator` whose batches are cut over the devices of all processes, which make each batch together."""

    def __init__(
        self, graphdef: nnx.GraphDef, config: SamplerConfig, placement: Placement, *, between: Callable[[], None]
    ):
        super().__init__(graphdef, config, batch=placement.whole_rows(128), between=between)
        sample = placement.sampler(self._sampler)
        if placement.mesh is not None:
            self._sampler = lambda *arguments: hosts.to_host(sample(*arguments))


class Decoding:
    """Prompts to replies, for any parameters of one structure; every sampler is compiled once.

    Args:
        graphdef: the model, without a critic.
        task: tokens and prompts.
        context: lengths of what is written.
        stop: flag of the signal handler. Decoding is left at once, its stage starts again, except `uninterrupted`.
        placement: where parameters lie and prompts are cut.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        task: MultiwozTask,
        context: ContextConfig,
        stop: StopRequest,
        placement: Placement = ONE_DEVICE,
    ):
        self._graphdef, self._task, self._context, self._stop = graphdef, task, context, stop
        self._placement = placement
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

    def _generator(self, **settings: Any) -> Generator:
        task = self._task
        greedy = SamplerConfig(self._context.max_reply, temperature=0.0, eos_id=task.eos_id, pad_id=task.pad_id)
        return PlacedGenerator(
            self._graphdef, replace(greedy, **settings), self._placement, between=self._between_batches
        )

    @cached_property
    def _replies(self) -> Generator:
        return self._generator()

    @cached_property
    def _reasoned(self) -> Generator:
        return self._generator(max_new_tokens=self._context.max_reply + MAX_ACTS)

    @cached_property
    def _states(self) -> Generator:
        end = self._task.serialiser.token(vocabulary.DATABASE)
        return self._generator(max_new_tokens=self._context.max_state, eos_id=end)

    @cached_property
    def _samples(self) -> Generator:
        return self._generator(temperature=1.0)

    def answer(self, params: Params, label: str = "") -> Decode:
        """Greedy replies of a model that answers directly; a label shows a progress bar."""
        return lambda prompts: _decode(self._replies, params, prompts, label)

    def reason_and_answer(self, params: Params, label: str = "") -> Decode:
        """Greedy replies of the scaffold, which writes acts first."""
        acts = self._task.serialiser.token(vocabulary.ACTS)

        def generate(prompts: Sequence[Ids]) -> list[Ids]:
            opened = [(*prompt[:-1], acts) for prompt in prompts]
            written = _decode(self._reasoned, params, opened, label)
            return [self._task.split_reasoned(ids)[1][: self._context.max_reply] for ids in written]

        return generate

    def write_states(self, params: Params) -> Decode:
        """Greedy states of a model (end-to-end track)."""
        return lambda prompts: self._states(params, prompts)

    def sample(self, params: Params, prompts: Sequence[Ids], seed: int, label: str) -> list[Ids]:
        """Replies drawn at temperature 1."""
        return _decode(self._samples, params, prompts, label, seed)

    def predict(
        self, params: Params, splits: str, *, reasoned: bool = False, limit: int = 0, label: str = ""
    ) -> Predictions:
        """Greedy replies to every turn of the splits (of their first `limit` dialogues), in the standard format."""
        generate = self.reason_and_answer(params, label) if reasoned else self.answer(params, label)
        return self._task.predict(splits, generate, self.write_states(params), limit)


def _decode(generator: Generator, params: Params, prompts: Sequence[Ids], label: str, seed: int = 0) -> list[Ids]:
    if not label:
        return generator(params, prompts, seed=seed)
    with Progress(label, len(prompts)) as bar:
        return generator(params, prompts, seed=seed, progress=bar)
