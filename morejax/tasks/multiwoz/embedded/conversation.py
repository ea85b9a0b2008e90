"""The growing record of one dialogue: exchanges, belief state, bookings and manners of the speakers."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from morejax.tasks.multiwoz.embedded.agent import Agent
from morejax.tasks.multiwoz.embedded.phrase import Phrase, Piece, Speech, Utterance, end_sentence, realise
from morejax.tasks.multiwoz.embedded.user import User

WORD_RANGE = (4, 20)
ATTEMPTS = 12

State = dict[str, dict[str, str]]


@dataclass(frozen=True)
class Exchange:
    """A user utterance and the reply to it, with the annotation after the user utterance.

    Attributes:
        user: what the user says.
        system: what the agent replies.
        state: domain -> slot -> value (schema slot names without domain; ``dontcare`` included).
        intents: domain -> active intent.
        requested: slots asked for in this utterance, ``"domain-slot"``.
        booked: domains booked by this reply, in order.
    """

    user: Utterance
    system: Utterance
    state: State
    intents: dict[str, str]
    requested: tuple[str, ...]
    booked: tuple[str, ...]


class Conversation:
    """Collects the exchanges of one dialogue.

    Args:
        rng: source of randomness of the dialogue.
        hurried: whether the agent takes the shortcuts described in `episodes`.
    """

    def __init__(self, rng: random.Random, *, hurried: bool) -> None:
        self.rng = rng
        self.hurried = hurried
        self.user = User(rng)
        self.agent = Agent(rng)
        self.state: State = {}
        self.exchanges: list[Exchange] = []
        self._booked: list[str] = []
        self._lower = rng.random() < 0.15
        self._contract = rng.random() < 0.6
        self._careless = rng.random() < 0.3
        self._heard: tuple[Utterance, dict[str, str], tuple[str, ...]] | None = None

    def says(
        self,
        make: Callable[[], Speech],
        domain: str = "",
        update: Mapping[str, str] | None = None,
        *,
        intent: str = "find",
        asks: Sequence[str] = (),
    ) -> None:
        """The user speaks.

        Args:
            make: draws the speech; drawn again while it is too short or too long.
            domain: active domain; empty for a goodbye.
            update: constraints and booking terms that the utterance sets.
            intent: ``find`` or ``book``.
            asks: slots asked for.
        """
        if update:
            self.state.setdefault(domain, {}).update(update)
        utterance = self._draw(make, contract=self._contract, lower=self._lower, careless=self._careless)
        intents = {domain: f"{'find' if domain == 'taxi' else intent}_{domain}"} if domain else {}
        self._heard = (utterance, intents, tuple(f"{domain}-{slot}" for slot in asks))

    def replies(self, make: Callable[[], Speech], *, books: str = "") -> None:
        """The agent replies to the last user utterance, booking a domain if ``books`` names it."""
        if self._heard is None:
            raise RuntimeError("the agent replies before the user has spoken")
        if books and books not in self._booked:
            self._booked.append(books)
        user, intents, requested = self._heard
        system = self._draw(make)
        state = copy.deepcopy(self.state)
        self.exchanges.append(Exchange(user, system, state, intents, requested, tuple(self._booked)))
        self._heard = None

    def chance(self, probability: float) -> bool:
        """Whether an event of this probability happens."""
        return self.rng.random() < probability

    def _draw(
        self,
        make: Callable[[], Speech],
        *,
        contract: bool = False,
        lower: bool = False,
        careless: bool = False,
    ) -> Utterance:
        drawn = []
        for _ in range(ATTEMPTS):
            speech = make()
            phrase = _drop_full_stop(speech.phrase) if careless else end_sentence(speech.phrase)
            utterance = realise(phrase, speech.acts, contract=contract, lower=lower)
            if WORD_RANGE[0] <= utterance.words <= WORD_RANGE[1]:
                return utterance
            drawn.append(utterance)
        return min(drawn, key=lambda utterance: max(WORD_RANGE[0] - utterance.words, utterance.words - WORD_RANGE[1]))


def _drop_full_stop(phrase: Phrase) -> Phrase:
    *rest, last = phrase
    return tuple(rest) if last == Piece(".") else phrase
