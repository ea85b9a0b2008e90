"""From dialogues to token ids: the context of a system turn, its state, its acts and its reply.

One sequence per system turn::

    [given]  [<weak>]  [<prev> previous state]  <user> u  <system> r  <user> u_t
    <state> state  <db> counts  [<acts> acts]  <response> reply <eos>

`<weak>` marks dialogues whose annotation is not exact (`--weak`), where a model is taught. What the system has given so
far is there with `--context.given`, the previous state on the end-to-end track only, the acts for the scaffold only.
Earlier system replies are delexicalised. On the policy track the prompt ends with `<response>` and holds the gold
state; on the end-to-end track it ends with `<state>` and the model writes the state, closed by `<db>`.

This is `--context.layout turn`; `dialogue_layout` has the other one.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from morejax.tasks.multiwoz import tokenizer as vocabulary
from morejax.tasks.multiwoz.context import ContextConfig, Earlier, Ids, PromptTooLong
from morejax.tasks.multiwoz.records import Dialogue, State, Turn
from morejax.tasks.multiwoz.token_ids import DATABASE_TOKENS, TokenIds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from morejax.tasks.multiwoz.database import Database


@dataclass(frozen=True)
class ContextStats:
    """What was cut to make examples fit: utterances, tokens of the oldest one kept, ends of gold replies."""

    examples: int = 0
    utterances_cut: int = 0
    utterance_tokens_cut: int = 0
    replies_cut: int = 0
    reply_tokens_cut: int = 0


@dataclass(frozen=True)
class Example:
    """One system turn as token ids.

    Attributes:
        dialogue_id: id of the dialogue.
        turn: 0-based number of the system turn.
        prompt: what the model is given; ends with `<response>` (policy) or `<state>` (e2e).
        reply: gold reply with `<eos>`; without it where `max_reply` cut the reply.
        state: gold state, without markers around it.
        acts: gold acts, without markers around them; empty unless the example is a reasoned one.
        sequence: the whole sequence to learn from; starts with the prompt, ends with the reply.
        target_mask: bool per token of the sequence: does the model write it itself? The reply, the acts
            (reasoned) and the state (e2e), each with the marker that closes it; never earlier utterances and the
            database counts. With `users` also the utterance that is answered.
    """

    dialogue_id: str
    turn: int
    prompt: Ids
    reply: Ids
    state: Ids
    acts: Ids
    sequence: Ids
    target_mask: tuple[bool, ...]


class Serialiser(TokenIds):
    """Turns dialogues into token ids and generated states back into dictionaries.

    Args:
        tokenizer: as `train_tokenizer` made it.
        config: track and lengths.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, config: ContextConfig) -> None:
        super().__init__(tokenizer, config)
        self.stats = ContextStats()

    def earlier(
        self, turns: Sequence[tuple[str, str, State]], database: Database, said: Sequence[str] | None = None
    ) -> list[Earlier]:
        """Earlier turns of a dialogue with all of them that prompts show.

        Args:
            turns: (user utterance, delexicalised reply, state after the utterance), oldest first.
            database: answers the queries of their states.
            said: replies that count as given, where those are not the ones that are shown.
        """
        return [Earlier(*turn) for turn in turns]

    def prompt(
        self,
        earlier: Sequence[Earlier],
        user: str,
        state: Mapping[str, Mapping[str, str]] | None,
        db: Ids = (),
        *,
        previous_state: Mapping[str, Mapping[str, str]] | None = None,
        given: Ids = (),
        with_acts: Ids | None = None,
        weak: bool = False,
        where: str = "prompt",
    ) -> Ids:
        """The prompt of a turn.

        Args:
            earlier: earlier turns, oldest first.
            user: current user utterance.
            state: state after it; None on the end-to-end track while the state is still to be generated.
            db: database counts, as `db_ids` gives them; ignored when `state` is None.
            previous_state: state before the utterance (end-to-end track only).
            given: what earlier replies gave, from `given_ids`; left out where the utterance has no room beside it.
            with_acts: ids of the acts the scaffold sees; None leaves the whole segment out.
            weak: say that the dialogue's annotation is not exact.
            where: dialogue and turn, for the error message.

        Returns:
            Token ids that end with `<response>`, or with `<state>` when `state` is None; at most
            `max_context`.

        Raises:
            PromptTooLong: everything but the utterances is longer than `max_context`.
        """
        mark = (vocabulary.token_id(self.tokenizer, vocabulary.WEAK),) if weak else ()
        head = (*mark, *self._previous_ids(previous_state))
        tail = self._tail_ids(state, db, with_acts)
        reserve = max(len(tail), self._reserve(with_acts) if self.config.track == "e2e" else 0)
        budget = self.config.max_context - len(head) - reserve
        if budget < 2:
            raise PromptTooLong(
                f"{where}: states, database result and acts take {len(head) + reserve} tokens, which leaves "
                f"no room for the user utterance in --context.max-context {self.config.max_context}"
            )
        # What was given grows with what a policy says: it gives way before the utterance that is to be answered does.
        if budget < len(given) + 1 + len(self.text_ids(user)):
            given = ()
        return given + head + self._dialogue_ids(earlier, user, budget - len(given)) + tail

    def _previous_ids(self, state: Mapping[str, Mapping[str, str]] | None) -> Ids:
        if self.config.track == "policy":
            return ()
        return (self._id[vocabulary.PREVIOUS], *self.state_ids(state or {}))

    def _tail_ids(self, state: Mapping[str, Mapping[str, str]] | None, db: Ids, acts: Ids | None) -> Ids:
        if state is None:
            return (self._id[vocabulary.STATE],)
        return (self._id[vocabulary.STATE], *self.state_ids(state), *self._after_state(db, acts))

    def _after_state(self, db: Ids, acts: Ids | None) -> Ids:
        reasons = () if acts is None else (self._id[vocabulary.ACTS], *acts)
        return (*db, *reasons, self._id[vocabulary.RESPONSE])

    def _reserve(self, acts: Ids | None) -> int:
        # <state>, the generated state with its <db>, the counts, <response>: the same utterances fit before
        # and after the state has been written.
        return self.config.max_state + DATABASE_TOKENS + 1 + (0 if acts is None else 1 + len(acts))

    def _dialogue_ids(self, earlier: Sequence[Earlier], user: str, budget: int) -> Ids:
        spoken = [((vocabulary.USER, turn.user), (vocabulary.SYSTEM, turn.reply)) for turn in earlier]
        utterances = [utterance for turn in spoken for utterance in turn]
        recent = [*utterances, (vocabulary.USER, user)][-self.config.history :]
        segments = [(self._id[role], *self.text_ids(text)) for role, text in recent]
        kept, size = [], 0
        for segment in reversed(segments):
            if kept and size + len(segment) > budget:
                break
            kept.insert(0, segment)
            size += len(segment)
        excess = max(0, size - budget)
        if excess:
            kept[0] = (kept[0][0], *kept[0][1 + excess :])
        self._count(utterances_cut=len(segments) - len(kept), utterance_tokens_cut=excess)
        return tuple(token for segment in kept for token in segment)

    def reply_ids(self, text: str) -> Ids:
        """Reply and `<eos>`, cut to `max_reply` tokens."""
        ids = (*self.text_ids(text), self._id[vocabulary.EOS])
        excess = max(0, len(ids) - self.config.max_reply)
        self._count(replies_cut=int(excess > 0), reply_tokens_cut=excess)
        return ids[: self.config.max_reply]

    def _count(self, **more: int) -> None:
        if any(more.values()):
            self.stats = replace(self.stats, **{name: getattr(self.stats, name) + n for name, n in more.items()})

    def examples(
        self,
        dialogues: Iterable[Dialogue],
        database: Database,
        *,
        reasoned: bool,
        users: bool = False,
        weak: Container[str] = (),
    ) -> list[Example]:
        """One example per system turn, in corpus order; `stats` says what was cut.

        Args:
            dialogues: dialogues to read.
            database: for the counts after the state.
            reasoned: put the gold acts before the reply, as the scaffold sees them.
            users: what the user has just said is to be predicted, too.
            weak: ids of the dialogues whose annotation is not exact.

        Raises:
            PromptTooLong: a prompt or, on the end-to-end track, a gold state that does not fit.
        """
        dialogues = list(dialogues)
        self._warm(dialogues)
        made = [
            self.example(d, t, database, reasoned=reasoned, users=users, weak=d.id in weak)
            for d in dialogues
            for t in range(len(d.turns))
        ]
        self._count(examples=len(made))
        return made

    def _warm(self, dialogues: Sequence[Dialogue]) -> None:
        self.warm(text for d in dialogues for t in d.turns for text in (t.user, t.delex))
        self.warm(v for d in dialogues for t in d.turns for slots in t.state.values() for v in slots.values())

    def example(
        self,
        dialogue: Dialogue,
        turn: int,
        database: Database,
        *,
        reasoned: bool,
        users: bool = False,
        weak: bool = False,
    ) -> Example:
        """The example of one system turn; see `examples`."""
        now: Turn = dialogue.turns[turn]
        where = place(dialogue, turn)
        state, db = self.state_ids(now.state), self.db_ids(now.state, database)
        acts = self.acts_ids(now.acts) if reasoned else None
        generated = self.config.track == "e2e"
        before = dialogue.turns[:turn]
        prompt = self.prompt(
            self.earlier([(t.user, t.delex, t.state) for t in before], database),
            now.user,
            None if generated else now.state,
            db,
            previous_state=before[-1].state if before else {},
            given=self.given_ids([t.delex for t in before], [t.state for t in before]),
            with_acts=acts,
            weak=weak,
            where=where,
        )
        reply = self.reply_ids(now.delex)
        if generated:
            self._check_state(state, where)
        between = (*state, *self._after_state(db, acts)) if generated else ()
        sequence = (*prompt, *between, *reply)
        written = set() if not generated else set(range(len(prompt), len(prompt) + len(state) + 1))
        # Acts, the <response> that closes them and the reply stand at the end, whatever the track.
        own = len(reply) + (0 if acts is None else len(acts) + 1)
        if users:
            written |= self._utterance(prompt)
        mask = tuple(i in written or i >= len(sequence) - own for i in range(len(sequence)))
        return Example(dialogue.id, turn, prompt, reply, state, acts or (), sequence, mask)

    def _utterance(self, prompt: Ids) -> set[int]:
        """Where the last utterance of a prompt stands, its `<user>` left out, with the `<state>` that closes it."""
        end = len(prompt) - 1 - prompt[::-1].index(self._id[vocabulary.STATE])
        user = end - 1 - prompt[:end][::-1].index(self._id[vocabulary.USER])
        return set(range(user + 1, end + 1))

    def _check_state(self, state: Ids, where: str) -> None:
        """Of a state that the model is to write."""
        if len(state) + 1 > self.config.max_state:
            raise PromptTooLong(
                f"{where}: the state and its closing <db> take {len(state) + 1} tokens, "
                f"--context.max-state is {self.config.max_state}"
            )


def place(dialogue: Dialogue, turn: int) -> str:
    """Of a turn, for messages."""
    return f"dialogue {dialogue.id}, turn {turn}"
