"""A dialogue as one sequence, in which every turn adds what is new: `--context.layout dialogue`.

::

    [<weak>]  [<prev> state before]  turn  turn  ...
    turn = <user> u  <state> changed  <db> counts  [given]  [<acts> acts]  <response> reply <eos>

`changed` are the domains in which something changed, in full. A model learns all replies of a dialogue in one pass,
each behind everything said before it, where `--context.layout turn` reads the end of the dialogue anew for every reply.

A prompt is the beginning of that sequence up to a turn's `<response>` (or `<state>`, where the model writes the state).
Where it would grow beyond the context the oldest turns go, and the state before the first one that is left stands in
front. Then as many go that the kept ones take `REFILL` of the room: the turns that follow begin at the same one, and
share a sequence.

Acts stand in the turn that is answered alone. The scaffold learns them in a random half of the turns of a dialogue, and
in the other half in a second sequence, so that it knows histories without.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from morejax.tasks.multiwoz import tokenizer as vocabulary
from morejax.tasks.multiwoz.context import Earlier, Ids, PromptTooLong
from morejax.tasks.multiwoz.examples import Serialiser, place
from morejax.tasks.multiwoz.records import Dialogue, State
from morejax.tasks.multiwoz.token_ids import DATABASE_TOKENS

if TYPE_CHECKING:
    from morejax.tasks.multiwoz.database import Database

REFILL = 0.6
"""Share of the context that is filled again once old turns had to go."""
REPEAT = 0.25
"""The same for sequences that are learnt, where what is repeated is read twice."""

AnyState = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class TurnIds:
    """One turn as token ids; what is not known yet is empty.

    Attributes:
        before: `<prev> state before`, for a sequence that begins here; empty in a first turn.
        user: `<user> u`.
        opened: `<state>`.
        state: `changed`.
        db: `<db> counts`.
        given: what earlier replies gave.
        acts: `<acts> acts` for the scaffold.
        answer: `<response>`.
        reply: with its `<eos>`.
    """

    before: Ids
    user: Ids
    opened: Ids
    state: Ids = ()
    db: Ids = ()
    given: Ids = ()
    acts: Ids = ()
    answer: Ids = ()
    reply: Ids = ()

    @property
    def prompt(self) -> Ids:
        """Everything but the reply."""
        return self.user + self.opened + self.state + self.db + self.given + self.acts + self.answer

    @property
    def size(self) -> int:
        """Tokens of the turn."""
        return len(self.prompt) + len(self.reply)


@dataclass(frozen=True)
class Window:
    """Some turns of a dialogue as one sequence to learn from.

    Attributes:
        dialogue_id: id of the dialogue.
        turns: 0-based numbers of the turns that are learnt here; what else is in the sequence is context.
        sequence, target_mask: token ids, and for each: does the model write it itself? As in `Example`.
    """

    dialogue_id: str
    turns: tuple[int, ...]
    sequence: Ids
    target_mask: tuple[bool, ...]


def changed(state: AnyState, before: AnyState) -> dict[str, Mapping[str, str]]:
    """The domains of a state that are not as they were, in full. What a state no longer has is not told."""
    return {domain: slots for domain, slots in state.items() if slots and slots != before.get(domain)}


def starts(turns: Sequence[TurnIds], needs: Sequence[int], room: int, refill: float = REFILL) -> list[int]:
    """With which turn the sequence begins that a turn's prompt is the end of, for every turn.

    Args:
        turns: of a dialogue, in order.
        needs: tokens of each turn's prompt without what is before it, or to be kept free for it.
        room: most tokens of a prompt.
        refill: share of the room that is filled again once old turns had to go.

    Returns:
        One number a turn, never falling; the turn's own where nothing before it fits.
    """
    ends = np.cumsum([0, *(turn.size for turn in turns)])

    def length(first: int, last: int) -> int:
        return len(turns[first].before) + int(ends[last] - ends[first]) + needs[last]

    found, first = [], 0
    for last in range(len(turns)):
        if length(first, last) > room:
            first = next((begin for begin in range(first + 1, last) if length(begin, last) <= refill * room), last)
        found.append(first)
    return found


class DialogueSerialiser(Serialiser):
    """Turns dialogues into token ids as this module's docstring says."""

    def earlier(
        self, turns: Sequence[tuple[str, str, State]], database: Database, said: Sequence[str] | None = None
    ) -> list[Earlier]:
        """Earlier turns of a dialogue with all of them that prompts show; see `Serialiser.earlier`."""
        replies = [reply for _, reply, _ in turns] if said is None else said
        states = [state for _, _, state in turns]
        return [
            Earlier(*turn, self.db_ids(turn[2], database), self.given_ids(replies[:index], states[:index]))
            for index, turn in enumerate(turns)
        ]

    def state_after(self, ids: Iterable[int], before: State, utterances: Sequence[str]) -> State:
        """The state that a model has written for a prompt: the domains it wrote, the others as before."""
        return self._known({**before, **self.parse_state(ids)}, utterances)

    def prompt(
        self,
        earlier: Sequence[Earlier],
        user: str,
        state: AnyState | None,
        db: Ids = (),
        *,
        previous_state: AnyState | None = None,
        given: Ids = (),
        with_acts: Ids | None = None,
        weak: bool = False,
        where: str = "prompt",
    ) -> Ids:
        """The prompt of a turn; arguments, result and errors are those of `Serialiser.prompt`.

        The state before the turn is that of the last earlier one: `previous_state` is not read.
        """
        befores = [{}, *(turn.state for turn in earlier)]
        turns = [
            self._turn(before, turn.user, turn.state, turn.db, turn.given, reply=turn.reply)
            for before, turn in zip(befores, earlier, strict=False)
        ]
        turns.append(self._turn(befores[-1], user, state, db, given, with_acts))
        mark, room = self._mark(weak), self.config.max_context - weak
        needs = [self._need(turn) for turn in turns]
        first = starts(turns, needs, room)[-1]
        self._count(utterances_cut=2 * first)
        kept = [self._fitted(turn, room, where) if first == len(turns) - 1 else turn for turn in turns[first:]]
        end = kept[-1].prompt if state is not None else kept[-1].user + kept[-1].opened
        return (*mark, *kept[0].before, *itertools.chain(*(turn.prompt + turn.reply for turn in kept[:-1])), *end)

    def examples(
        self,
        dialogues: Iterable[Dialogue],
        database: Database,
        *,
        reasoned: bool,
        users: bool = False,
        weak: Container[str] = (),
    ) -> list[Window]:  # type: ignore[override]
        """All replies of all dialogues, each once, as far as they fit into common sequences.

        Args:
            dialogues, database, users, weak: as in `Serialiser.examples`.
            reasoned: acts before the replies that are learnt.

        Raises:
            PromptTooLong: a prompt or, on the end-to-end track, a gold state that does not fit.
        """
        dialogues = list(dialogues)
        self._warm(dialogues)
        made = [
            window
            for dialogue in dialogues
            for learnt in self._parts(dialogue, reasoned)
            for window in self._windows(dialogue, database, learnt, reasoned, users, dialogue.id in weak)
        ]
        self._count(examples=sum(len(window.turns) for window in made))
        return made

    def _parts(self, dialogue: Dialogue, reasoned: bool) -> list[set[int]]:
        """The turns of a dialogue by the sequence that they are learnt in."""
        every = set(range(len(dialogue.turns)))
        if not reasoned:
            return [every]
        random = np.random.default_rng(zlib.crc32(dialogue.id.encode()))
        half = {turn for turn in sorted(every) if random.random() < 0.5}
        return [part for part in (half, every - half) if part]

    def _windows(
        self, dialogue: Dialogue, database: Database, learnt: set[int], reasoned: bool, users: bool, weak: bool
    ) -> list[Window]:
        turns = self._turns(dialogue, database, learnt if reasoned else set())
        room = self.config.longest - self.config.max_reply - weak
        begins = starts(turns, [self._need(turn) for turn in turns], room, REPEAT)
        made = []
        for first in sorted(set(begins)):
            here = [turn for turn in range(len(turns)) if begins[turn] == first and turn in learnt]
            if not here:
                continue
            kept = list(turns[first : here[-1] + 1])
            if here[-1] == first:
                kept[0] = self._fitted(kept[0], room, place(dialogue, first))
            ids, mask = list(self._mark(weak) + kept[0].before), [False] * (weak + len(kept[0].before))
            for number, turn in enumerate(kept, first):
                ids += turn.prompt + turn.reply
                mask += self._targets(turn, number in here, users)
            made.append(Window(dialogue.id, tuple(here), tuple(ids), tuple(mask)))
        return made

    def _turns(self, dialogue: Dialogue, database: Database, with_acts: Container[int]) -> list[TurnIds]:
        told = self.earlier([(turn.user, turn.delex, turn.state) for turn in dialogue.turns], database)
        befores = [{}, *(turn.state for turn in dialogue.turns)]
        made = []
        for number, (before, turn) in enumerate(zip(befores, told, strict=False)):
            acts = self.acts_ids(dialogue.turns[number].acts) if number in with_acts else None
            made.append(self._turn(before, turn.user, turn.state, turn.db, turn.given, acts, turn.reply))
            if self.config.track == "e2e":
                self._check_state(made[-1].state, place(dialogue, number))
        return made

    def _targets(self, turn: TurnIds, learnt: bool, users: bool) -> list[bool]:
        """Of every token of a turn: does the model write it (or is it to predict users, too), and learn to here?"""
        states = learnt and self.config.track == "e2e"
        parts = (
            (turn.user[:1], False),
            (turn.user[1:] + turn.opened, learnt and users),
            (turn.state, states),
            # The state is closed by <db>, the acts by <response>.
            (turn.db[:1], states),
            (turn.db[1:] + turn.given + turn.acts[:1], False),
            (turn.acts[1:], learnt),
            (turn.answer, learnt and bool(turn.acts)),
            (turn.reply, learnt),
        )
        return [written for ids, written in parts for _ in ids]

    def _mark(self, weak: bool) -> Ids:
        return (vocabulary.token_id(self.tokenizer, vocabulary.WEAK),) if weak else ()

    def _turn(
        self,
        before: AnyState,
        user: str,
        state: AnyState | None,
        db: Ids,
        given: Ids,
        acts: Ids | None = None,
        reply: str | None = None,
    ) -> TurnIds:
        return TurnIds(
            before=(self.token(vocabulary.PREVIOUS), *self.state_ids(before)) if before else (),
            user=(self.token(vocabulary.USER), *self.text_ids(user)),
            opened=(self.token(vocabulary.STATE),),
            state=() if state is None else self.state_ids(changed(state, before)),
            db=() if state is None else db,
            given=given,
            acts=() if acts is None else (self.token(vocabulary.ACTS), *acts),
            answer=(self.token(vocabulary.RESPONSE),),
            reply=() if reply is None else self.reply_ids(reply),
        )

    def _need(self, turn: TurnIds) -> int:
        """Tokens to be kept free for a turn's prompt: the same before and after its state is written."""
        if self.config.track == "policy":
            return len(turn.prompt)
        fixed = turn.user + turn.opened + turn.given + turn.acts + turn.answer
        return len(fixed) + self.config.max_state + DATABASE_TOKENS - 1

    def _fitted(self, turn: TurnIds, room: int, where: str) -> TurnIds:
        """A turn that stands alone, its utterance cut at the front to what there is room for.

        Raises:
            PromptTooLong: everything but the utterance is too long.
        """
        excess = len(turn.before) + self._need(turn) - room
        if excess <= 0:
            return turn
        if excess > len(turn.user) - 2:
            fixed = len(turn.before) + self._need(turn) - len(turn.user)
            raise PromptTooLong(
                f"{where}: states, database result and acts take {fixed} tokens, which leaves no room for the user "
                f"utterance in --context.max-context {self.config.max_context}"
            )
        self._count(utterance_tokens_cut=excess)
        return replace(turn, user=(turn.user[0], *turn.user[1 + excess :]))


def serialiser_of(tokenizer, config) -> Serialiser:
    """The serialiser of the layout that a configuration names."""
    return (DialogueSerialiser if config.layout == "dialogue" else Serialiser)(tokenizer, config)
