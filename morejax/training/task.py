"""What the training stages ask of a task: prompts of turns, sequences to learn from, rewards of replies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from morejax.tasks.streams import SampledBatch, StackedStreams, StreamContext

Ids = tuple[int, ...]


class TurnPrompts(Protocol):
    """The prompts of one agent turn: `direct` for the policy, `reasoned` for the scaffold, and the corpus's reply."""

    @property
    def dialogue(self) -> Any: ...
    @property
    def turn(self) -> int: ...
    @property
    def direct(self) -> Ids: ...
    @property
    def reasoned(self) -> Ids: ...
    @property
    def reference(self) -> Ids: ...


class Example(Protocol):
    """A sequence to learn from; `target_mask` marks what the model writes."""

    @property
    def sequence(self) -> Ids: ...
    @property
    def target_mask(self) -> tuple[bool, ...]: ...


class Task(Protocol):
    """Tokens and streams of a task."""

    streams: tuple[str, ...]
    context: StreamContext

    @property
    def eos_id(self) -> int: ...
    @property
    def pad_id(self) -> int: ...

    @property
    def turn_by_turn(self) -> bool:
        """Does a prompt depend on what the model has said in earlier turns?"""
        ...

    @property
    def aloud(self) -> bool:
        """Does the policy write its reasoning before each reply?"""
        ...

    def prompts(self, dialogue: Any) -> Sequence[TurnPrompts]:
        """Prompts of all turns of a dialogue."""
        ...

    def prompts_after(self, prompts: Sequence[Any], said: Sequence[Ids]) -> TurnPrompts:
        """Prompts of the next turn of a dialogue once the model has said something itself; asked of tasks that go turn
        by turn."""
        ...

    def spoken(self, prompt: Any, written: Ids) -> tuple[Ids, Ids]:
        """Prompt and reply as a judge of language reads them, without reasoning; asked of tasks answered aloud."""
        ...

    def sampled(
        self,
        prompts: Sequence[Any],
        replies: Sequence[Ids],
        lm_logp: np.ndarray | None = None,
        natural: np.ndarray | None = None,
    ) -> SampledBatch:
        """Replies to whole dialogues as streams see them."""
        ...

    def rewards(self, batch: SampledBatch, max_reply: int) -> StackedStreams:
        """All streams as arrays."""
        ...
