"""Parts of a dialogue as token ids: texts, states, counts, acts, what was given; and a written state back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from morejax.tasks.multiwoz import tokenizer as vocabulary
from morejax.tasks.multiwoz.canonical import PLACEHOLDERS
from morejax.tasks.multiwoz.context import ContextConfig, Ids
from morejax.tasks.multiwoz.normalise import mentions, minutes, normalise_value
from morejax.tasks.multiwoz.records import Act, State
from morejax.tasks.multiwoz.said_names import without_unsaid_names
from morejax.tasks.multiwoz.scorer import estimate_domains

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from morejax.tasks.multiwoz.database import Database

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


class TokenIds:
    """Parts of a dialogue as token ids, and generated states back as dictionaries; a text is encoded once.

    Args:
        tokenizer: as `train_tokenizer` made it.
        config: track and lengths.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, config: ContextConfig) -> None:
        self.tokenizer = tokenizer
        self.config = config
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

    def state_after(self, ids: Iterable[int], before: State, utterances: Sequence[str]) -> State:
        """The state that a model has written for a prompt.

        Args:
            ids: what it wrote.
            before: state before the last utterance.
            utterances: all of the user's, which say what names there can be (`--context.names`).
        """
        return self._known(self.parse_state(ids), utterances)

    def _known(self, state: State, utterances: Sequence[str]) -> State:
        return state if self.config.names == "any" else without_unsaid_names(state, utterances)

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

    def split_reasoned(self, ids: Ids) -> tuple[Ids, Ids]:
        """Cut what a model that reasons wrote at `<response>`: acts, and the reply, cut to `max_reply` tokens.

        Where nothing follows, or acts never ended, the reply is `<eos>` alone.
        """
        response = self._id[vocabulary.RESPONSE]
        cut = ids.index(response) if response in ids else len(ids)
        return ids[:cut], ids[cut + 1 :][: self.config.max_reply] or (self._id[vocabulary.EOS],)


def _readable(slot: str, value: str) -> bool:
    try:
        normal = normalise_value(slot, value)
        return slot not in ("arrive", "leave") or minutes(normal) >= 0
    except ValueError:
        return False
