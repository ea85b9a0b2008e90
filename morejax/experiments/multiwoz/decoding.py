"""Replies and dialogue states written by the run's language models."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from flax import nnx

from morejax.experiments.shared import decoding
from morejax.experiments.shared.decoding import Decode
from morejax.models.split import Params
from morejax.tasks.multiwoz import tokenizer as vocabulary
from morejax.tasks.multiwoz.context import MAX_ACTS, ContextConfig
from morejax.tasks.multiwoz.task import MultiwozTask
from morejax.training.generate import Generator
from morejax.training.interrupt import StopRequest
from morejax.training.placement import ONE_DEVICE, Placement
from morejax.training.progress import Progress
from morejax.training.task import Ids

Predictions = dict[str, list[dict[str, Any]]]
"""Dialogue id -> one {"response", ...} per turn: the standard format."""


class Decoding(decoding.Decoding):
    """Prompts to replies and states, for any parameters of one structure.

    Args:
        graphdef: the model, without a critic.
        task: tokens and prompts.
        context: lengths of what is written.
        stop: flag of the signal handler.
        placement: where parameters lie and prompts are cut.
        max_acts: most tokens of acts before a reply.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        task: MultiwozTask,
        context: ContextConfig,
        stop: StopRequest,
        placement: Placement = ONE_DEVICE,
        max_acts: int = MAX_ACTS,
    ):
        reasoning = task.serialiser.token(vocabulary.ACTS), max_acts, task.split_reasoned
        # Turn by turn few dialogues are left in late turns: calls that are filled up should be small ones.
        few = task.turn_by_turn or task.track == "e2e"
        super().__init__(graphdef, task, context.max_reply, reasoning, stop, placement, batch=32 if few else 128)
        self._max_state = context.max_state

    @cached_property
    def _states(self) -> Generator:
        end = self._task.serialiser.token(vocabulary.DATABASE)
        return self.generator(max_new_tokens=self._max_state, eos_id=end)

    def write_states(self, params: Params) -> Decode:
        """Greedy states of a model (end-to-end track)."""
        return lambda prompts: self._states(params, prompts)

    def predict(
        self, params: Params, splits: str, *, reasoned: bool = False, limit: int = 0, label: str = ""
    ) -> Predictions:
        """Greedy replies to every turn of the splits (of their first `limit` dialogues), in the standard format."""
        answer = self.reason_and_answer if reasoned else self.answer
        states = self.write_states(params)
        if not label or (self._task.track == "policy" and not self._task.turn_by_turn):
            return self._task.predict(splits, answer(params, label), states, limit)
        # Turn after turn: one bar for all of them.
        dialogues = self._task.corpus.dialogues(splits)
        turns = sum(len(dialogue.turns) for dialogue in (dialogues[:limit] if limit else dialogues))
        with Progress(label, turns) as bar:
            return self._task.predict(splits, _counted(answer(params), bar), states, limit)


def _counted(generate: Decode, bar: Progress) -> Decode:
    """The same, with every call's replies added to a progress bar."""
    done = 0

    def counted(prompts: Sequence[Ids]) -> list[Ids]:
        nonlocal done
        replies = generate(prompts)
        done += len(replies)
        bar.update(done, tokens=sum(map(len, replies)))
        return replies

    return counted
