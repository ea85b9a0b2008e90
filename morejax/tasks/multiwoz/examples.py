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
from typing import TYPE_CHECKING, Literal, NamedTuple

from morejax.tasks.multiwoz import tokenizer as vocabulary
from morejax.tasks.multiwoz.canonical import PLACEHOLDERS
from morejax.tasks.multiwoz.normalise import mentions, minutes, normalise_value
from morejax.tasks.multiwoz.records import Act, Dialogue, State, Turn
from morejax.tasks.multiwoz.scorer import estimate_domains

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from morejax.tasks.multiwoz.database import Database

Ids = tuple[int, ...]

QUERYABLE = ("restaurant", "hotel", "attraction", "train")
ACT_SLOT_NAMES = {"leaveat": "leave", "arriveby": "arrive"}
DATABASE_TOKENS = 1 + 2 * len(QUERYABLE)
GIVEN = {
    "NAME": "name",
    "TRAINID": "trainid",
    "PHONE": "phone",
    "ADDRESS": "address",
    "POST": "postcode",
    "REFERENCE": "ref",
}  # fmt: skip
"""Placeholder of a reply that counts as given -> the marker that says so later."""


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
    layout: Literal["turn", "dialogue"] = "turn"
    window: int = 0

    def __post_init__(self) -> None:
        if self.track not in ("policy", "e2e"):
            raise ValueError(f"--track is {self.track!r}, expected 'policy' or 'e2e'")
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
            (reasoned) and the state (e2e), each with the marker that closes it; never the utterances and the
            database counts.
    """

    dialogue_id: str
    turn: int
    prompt: Ids
    reply: Ids
    state: Ids
    acts: Ids
    sequence: Ids
    target_mask: tuple[bool, ...]


class Serialiser:
    """Turns dialogues into token ids and generated states back into dictionaries; a text is encoded once.

    Args:
        tokenizer: as `train_tokenizer` made it.
        config: track and lengths.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, config: ContextConfig) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self.stats = ContextStats()
        self._cache: dict[str, Ids] = {}
        names = (*vocabulary.special_tokens(), *PLACEHOLDERS)
        self._id = {name: vocabulary.token_id(tokenizer, name) for name in names}
        self._domain_of = self._markers(vocabulary.DOMAINS)
        self._slot_of = self._markers(vocabulary.STATE_SLOTS)
        self._value_of = self._markers(vocabulary.VALUES)
        self._control = {self._id[name] for name in vocabulary.special_tokens()}

    def _markers(self, names: Iterable[str]) -> dict[int, str]:
        return {self._id[vocabulary.marker(name)]: name for name in names}

    def token(self, name: str) -> int:
        """Id of a marker, for example `token("<response>")`."""
        return self._id[name]

    # Text

    def warm(self, texts: Iterable[str]) -> None:
        """Encodes the texts not seen before in one batch."""
        new = [text for text in dict.fromkeys(texts) if text not in self._cache]
        self._cache.update(zip(new, vocabulary.encode_batch(self.tokenizer, new), strict=True))

    def text_ids(self, text: str) -> Ids:
        """Token ids of an utterance, cached."""
        if text not in self._cache:
            self.warm([text])
        return self._cache[text]

    # State, database, acts

    def _marker_id(self, name: str, known: Sequence[str], what: str) -> int:
        if name not in known:
            raise ValueError(f"unknown {what} {name!r}, expected one of {', '.join(known)}")
        return self._id[vocabulary.marker(name)]

    def value_ids(self, value: str) -> Ids:
        """Token ids of a state value: one marker for yes, no and dontcare, word pieces otherwise."""
        return (self._id[vocabulary.marker(value)],) if value in vocabulary.VALUES else self.text_ids(value)

    def state_ids(self, state: Mapping[str, Mapping[str, str]]) -> Ids:
        """`<domain> <slot> value <slot> value ...` in a fixed order, so that a state has one form.

        Raises:
            ValueError: a domain or slot outside the ontology.
        """
        ids: list[int] = []
        for domain in state:
            self._marker_id(domain, vocabulary.DOMAINS, "state domain")
        for domain in (d for d in vocabulary.DOMAINS if state.get(d)):
            ids.append(self._id[vocabulary.marker(domain)])
            for slot in sorted(state[domain]):
                ids.append(self._marker_id(slot, vocabulary.STATE_SLOTS, f"slot of the {domain} state"))
                ids.extend(self.value_ids(state[domain][slot]))
        return tuple(ids)

    def parse_state(self, ids: Iterable[int]) -> State:
        """Inverse of `state_ids` up to the first control token that is no domain, slot or value.

        Made for generated states: a slot without a domain or a value is dropped, of two values the later
        stays.
        """
        state: State = {}
        for domain, slot, value in self._state_pairs(ids):
            known = self._value_of.get(value[0])
            text = known or vocabulary.decode(self.tokenizer, value)
            if text and _readable(slot, text):
                state.setdefault(domain, {})[slot] = text
        return state

    def state_after(self, ids: Iterable[int], before: State) -> State:
        """The state that a model has written for a prompt, given the state before it."""
        return self.parse_state(ids)

    def _state_pairs(self, ids: Iterable[int]) -> list[tuple[str, str, list[int]]]:
        pairs: list[tuple[str, str, list[int]]] = []
        domain, open_pair = None, False
        for token in map(int, ids):
            if token in self._domain_of:
                domain, open_pair = self._domain_of[token], False
            elif token in self._slot_of:
                open_pair = domain is not None
                if domain is not None:
                    pairs.append((domain, self._slot_of[token], []))
            elif token in self._control and token not in self._value_of:
                break
            elif open_pair:
                pairs[-1][2].append(token)
        return [pair for pair in pairs if pair[2]]

    def given_ids(self, replies: Sequence[str], states: Sequence[State]) -> Ids:
        """What earlier replies gave: `<domain> <slot> ...` for every domain with something, in a fixed order.

        A reply gives to the domain that is active in its turn, as the scorer sees it.

        Args:
            replies: delexicalised, of all earlier turns.
            states: of the same turns, each after its user utterance.

        Returns:
            Token ids; none without `--context.given`.
        """
        if not self.config.given:
            return ()
        found: dict[str, set[str]] = {}
        for reply, active in zip(replies, estimate_domains(states), strict=True):
            for domain in active:
                found.setdefault(domain, set()).update(mentions(reply) & GIVEN.keys())
        return tuple(
            self._id[vocabulary.marker(name)]
            for domain in vocabulary.DOMAINS
            if found.get(domain)
            for name in (domain, *(slot for said, slot in GIVEN.items() if said in found[domain]))
        )

    def db_ids(self, state: Mapping[str, Mapping[str, str]], database: Database) -> Ids:
        """`<db>`, then the marker and the count bucket of every domain with constraints and a database."""
        ids = [self._id[vocabulary.DATABASE]]
        for domain in (d for d in QUERYABLE if state.get(d)):
            count = vocabulary.count_marker(database.count(domain, state[domain]))
            ids += [self._id[vocabulary.marker(domain)], self._id[count]]
        return tuple(ids)

    def acts_ids(self, acts: Iterable[Act]) -> Ids:
        """`<domain> <intent> <slot> ...` per act; a domain is written when it changes.

        Acts are never parsed back, so a rare name without a marker is written in word pieces.
        """
        ids: list[int] = []
        last = None
        for act in acts:
            slots = (ACT_SLOT_NAMES.get(slot, slot) for slot in act.slots)
            changed = () if act.domain == last else (act.domain,)
            for name in (*changed, act.intent, *slots):
                marker = self._id.get(vocabulary.marker(name))
                ids.extend(self.text_ids(name) if marker is None else (marker,))
            last = act.domain
        return tuple(ids)

    # Prompts

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

    # Examples

    def examples(
        self, dialogues: Iterable[Dialogue], database: Database, *, reasoned: bool, weak: Container[str] = ()
    ) -> list[Example]:
        """One example per system turn, in corpus order; `stats` says what was cut.

        Args:
            dialogues: dialogues to read.
            database: for the counts after the state.
            reasoned: put the gold acts before the reply, as the scaffold sees them.
            weak: ids of the dialogues whose annotation is not exact.

        Raises:
            PromptTooLong: a prompt or, on the end-to-end track, a gold state that does not fit.
        """
        dialogues = list(dialogues)
        self._warm(dialogues)
        made = [
            self.example(d, t, database, reasoned=reasoned, weak=d.id in weak)
            for d in dialogues
            for t in range(len(d.turns))
        ]
        self._count(examples=len(made))
        return made

    def _warm(self, dialogues: Sequence[Dialogue]) -> None:
        self.warm(text for d in dialogues for t in d.turns for text in (t.user, t.delex))
        self.warm(v for d in dialogues for t in d.turns for slots in t.state.values() for v in slots.values())

    def example(
        self, dialogue: Dialogue, turn: int, database: Database, *, reasoned: bool, weak: bool = False
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
        mask = tuple(i in written or i >= len(sequence) - own for i in range(len(sequence)))
        return Example(dialogue.id, turn, prompt, reply, state, acts or (), sequence, mask)

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


def _readable(slot: str, value: str) -> bool:
    try:
        normal = normalise_value(slot, value)
        return slot not in ("arrive", "leave") or minutes(normal) >= 0
    except ValueError:
        return False
