"""What a model sees of a dialogue: the numbers (`--context.*`), and an earlier turn as prompts show it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from morejax.tasks.multiwoz.records import State

Ids = tuple[int, ...]

MAX_ACTS = 24
"""Most tokens of acts that a model writes before it answers."""


class PromptTooLong(ValueError):
    """State, database result and acts, which are never cut, do not fit into the context."""


@dataclass(frozen=True)
class ContextConfig:
    """What the model sees of a dialogue.

    Attributes:
        track: "policy" puts the gold state into the prompt, "e2e" lets the model generate it.
        history: number of most recent utterances, the current user utterance included.
        max_context: most tokens of a prompt that ends with `<response>`. On the end-to-end track room for the
            generated state (`max_state`) and the database counts is kept free in it.
        max_reply: most tokens of a reply, `<eos>` included; longer gold replies are cut and counted.
        max_state: most tokens of a generated state, the closing `<db>` included.
        given: begin with what the system has given in earlier turns, however long ago: domain by domain, whether it
            made an offer and which of the slots that can be requested it gave. The corpus's replies count while a
            model is taught, its own in rollouts and predictions, which then go turn by turn. On the policy track the
            utterances stay the corpus's, whatever the model has said.
        names: of the venue names in a state that a model writes (end-to-end track) keep those that the user has "said",
            or "any". What the system offered stands delexicalised in the context: a model cannot know its name.
        layout: "turn" shows the last utterances and the whole state, a sequence for every turn; "dialogue" the dialogue
            from its beginning (as far as the context reaches), every turn with its utterances and what it changed in
            the state, and is learnt a dialogue at a time. `history` has no effect then.
        window: layout "dialogue": most tokens of a sequence that is learnt; a longer dialogue is cut into several,
            which repeat some turns as context. 0: `max_context` + `max_reply`, what a prompt and its reply take.
    """

    track: Literal["policy", "e2e"] = "policy"
    history: int = 3
    max_context: int = 256
    max_reply: int = 64
    max_state: int = 96
    given: bool = False
    names: Literal["said", "any"] = "said"
    layout: Literal["turn", "dialogue"] = "turn"
    window: int = 0

    def __post_init__(self) -> None:
        if self.track not in ("policy", "e2e"):
            raise ValueError(f"--track is {self.track!r}, expected 'policy' or 'e2e'")
        if self.names not in ("said", "any"):
            raise ValueError(f"--context.names is {self.names!r}, expected 'said' or 'any'")
        if self.layout not in ("turn", "dialogue"):
            raise ValueError(f"--context.layout is {self.layout!r}, expected 'turn' or 'dialogue'")
        for name in ("history", "max_context", "max_reply", "max_state"):
            if getattr(self, name) < 1:
                raise ValueError(f"--context.{name} is {getattr(self, name)}, expected at least 1")
        if self.window and (self.layout == "turn" or self.window < self.max_context + self.max_reply):
            raise ValueError(
                f"--context.window {self.window}: expected --context.layout dialogue and at least "
                f"--context.max-context {self.max_context} plus --context.max-reply {self.max_reply}"
            )

    @property
    def longest(self) -> int:
        """Most tokens of a sequence."""
        return max(self.window, self.max_context + self.max_reply)

    def acts_room(self, positions: int) -> int:
        """Tokens that a model of so many positions has for acts, beside the longest prompt and reply; at most
        `MAX_ACTS`, and 0 or less where it has none."""
        return min(MAX_ACTS, positions - self.max_context - self.max_reply)


class Earlier(NamedTuple):
    """An earlier turn of a dialogue as prompts see it.

    Attributes:
        user: utterance.
        reply: delexicalised.
        state: after the utterance.
        db: database counts of that state (layout "dialogue" only).
        given: what the replies before it gave (layout "dialogue" with `given` only).
    """

    user: str
    reply: str
    state: State
    db: Ids = ()
    given: Ids = ()
