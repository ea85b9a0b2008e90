"""Turns answered aloud: the policy writes its dialogue acts before each reply, as the scaffold does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from morejax.tasks.multiwoz import tokenizer as vocabulary
from morejax.tasks.multiwoz.context import Ids
from morejax.tasks.multiwoz.records import Dialogue, State
from morejax.tasks.multiwoz.task import MultiwozTask, TurnPrompts
from morejax.tasks.streams import SampledBatch, StackedStreams, StreamContext


class AloudTask:
    """A `MultiwozTask` whose policy is asked for acts: what it writes is `acts <response> reply <eos>`.

    Streams judge the reply alone, so nothing pays for acts but what is said because of them. A reward stands at the
    last token of all that is written (a dense one at its own token), and reaches the acts as it reaches the reply's
    own tokens.

    Args:
        task: the same turns answered directly.
    """

    aloud = True

    def __init__(self, task: MultiwozTask):
        self._task = task
        self._opens = task.serialiser.token(vocabulary.ACTS)
        self._response = task.serialiser.token(vocabulary.RESPONSE)

    @property
    def streams(self) -> tuple[str, ...]:
        """Names, objectives first."""
        return self._task.streams

    @property
    def context(self) -> StreamContext:
        """What streams look at."""
        return self._task.context

    @property
    def turn_by_turn(self) -> bool:
        """Does a prompt depend on what the model has said in earlier turns?"""
        return self._task.turn_by_turn

    @property
    def eos_id(self) -> int:
        """Token that ends a reply."""
        return self._task.eos_id

    @property
    def pad_id(self) -> int:
        """Padding token."""
        return self._task.pad_id

    def opened(self, prompt: TurnPrompts) -> TurnPrompts:
        """The same prompts, but that the policy's ends with `<acts>`."""
        return replace(prompt, direct=(*prompt.direct[:-1], self._opens))

    def prompts(self, dialogue: Dialogue, states: Sequence[State] | None = None) -> list[TurnPrompts]:
        """As `MultiwozTask.prompts`, the policy's ending with `<acts>`."""
        return list(map(self.opened, self._task.prompts(dialogue, states)))

    def prompts_after(self, prompts: Sequence[TurnPrompts], said: Sequence[Ids]) -> TurnPrompts:
        """Prompts of the next turn; of what was written only the replies were said."""
        return self.opened(self._task.prompts_after(prompts, [self._reply(written) for written in said]))

    def spoken(self, prompt: TurnPrompts, written: Ids) -> tuple[Ids, Ids]:
        """What a judge of language reads of a turn: the prompt of a direct answer, and the reply."""
        return (*prompt.direct[:-1], self._response), self._reply(written)

    def _reply(self, written: Ids) -> Ids:
        return self._task.split_reasoned(written)[1]

    def sampled(
        self,
        prompts: Sequence[TurnPrompts],
        replies: Sequence[Ids],
        lm_logp: np.ndarray | None = None,
        natural: np.ndarray | None = None,
    ) -> SampledBatch:
        """Replies to whole dialogues as streams see them: the text that is said, the tokens of all that is written."""
        batch = self._task.sampled(prompts, [self._reply(written) for written in replies], lm_logp, natural)
        written = iter(replies)
        dialogues = tuple(tuple(replace(turn, tokens=next(written)) for turn in turns) for turns in batch.dialogues)
        return SampledBatch(dialogues, lm_logp, natural)

    def rewards(self, batch: SampledBatch, max_reply: int) -> StackedStreams:
        """All streams as arrays; `max_reply` counts what is written."""
        return self._task.rewards(batch, max_reply)
