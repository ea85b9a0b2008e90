"""How one domain of a dialogue unfolds: search, offer, questions, booking.

A careful agent names a venue once it fits everything said, answers all that is asked and gives the reference
number. A hurried one takes shortcuts, each in its own kind of turn, so that a policy can learn the habit and
unlearn it:

* asked for three things at once, it answers the first two;
* left to choose, or after the user added or changed a wish, it says that something fits without naming it;
* asked for something else in the same breath as a booking, it only books;
* now and then it forgets the second of two things, or the reference number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from morejax.tasks.multiwoz.embedded.conversation import Conversation
from morejax.tasks.multiwoz.embedded.entities import Record, World
from morejax.tasks.multiwoz.embedded.phrase import Speech
from morejax.tasks.multiwoz.embedded.wishes import SCORED, Wish, refused

ASKABLE = {
    "restaurant": ("food", "pricerange", "area"),
    "hotel": ("pricerange", "area", "stars", "type", "internet", "parking"),
    "attraction": ("area", "type"),
    "train": ("departure", "destination", "day", "leaveat"),
}
TIMES = ("leaveat", "arriveby")


class Episode:
    """One venue or train wish played out in a conversation.

    Args:
        talk: the conversation.
        world: databases.
        wish: what the user wants.
        brisk: whether the user tells everything at once.

    After `run`, ``venue`` is the record the agent settled on and ``named`` whether it was named.
    """

    def __init__(self, talk: Conversation, world: World, wish: Wish, *, brisk: bool) -> None:
        self.talk, self.world, self.wish, self.brisk = talk, world, wish, brisk
        self.domain = wish.domain
        self.pending = dict(wish.constraints) | wish.misgivings
        self.misgivings = dict(wish.misgivings)
        self.asks = list(wish.asks)
        self.merged: list[str] = []
        self.refined = self.asked = False
        self.venue: Record = {}
        self.named = False

    def run(self) -> None:
        """Play the episode from the user's opening to the last answer or booking."""
        self._open()
        self._search()
        self._offer()
        if self.wish.booking:
            self._book()
        elif self.asks:
            self._question()

    def _open(self) -> None:
        slots = list(self.pending)
        self.talk.rng.shuffle(slots)
        whole = self.brisk or self.wish.unmatched or self.talk.chance(0.25)
        count = len(slots) if whole else self.talk.rng.randint(1, len(slots))
        told = {slot: self.pending.pop(slot) for slot in slots[:count]}
        settled = not self.pending and not self.misgivings
        if settled and self.asks and self.talk.chance(0.22):
            self._merge_asks()
        first = not self.talk.exchanges
        self._says(lambda: self.talk.user.open(self.domain, told, first=first) + self._merged_asks(), told)

    def _merge_asks(self) -> None:
        count = 2 if self.wish.booking else 3
        self.merged, self.asks = self.asks[:count], self.asks[count:]

    def _merged_asks(self) -> Speech:
        if not self.merged:
            return Speech(())
        if self.domain == "train" or "name" in self.wish.constraints:
            return self.talk.user.ask_also(self.domain, self.merged)
        return self.talk.user.delegate(self.domain, self.merged)

    def _says(
        self,
        make: Callable[[], Speech],
        update: dict[str, str] | None = None,
        *,
        intent: str = "find",
        asks: Sequence[str] = (),
    ) -> None:
        self.talk.says(make, self.domain, update, intent=intent, asks=asks or self.merged)

    def _matches(self) -> list[Record]:
        return self.world.matches(self.domain, self.talk.state[self.domain])

    def _search(self) -> None:
        while True:
            if not self._matches():
                self._relax()
            elif self.pending and (self.domain == "train" or self.talk.chance(0.85)):
                self._request()
            elif self.pending or self.misgivings:
                self._offer_early()
            elif self._may_ask_more():
                self._request()
            else:
                return

    def _may_ask_more(self) -> bool:
        if self.asked or self.merged or self.domain == "train" or "name" in self.wish.constraints:
            return False
        return len(self._matches()) > 3 and self.talk.chance(0.25) and bool(self._open_slots())

    def _open_slots(self) -> list[str]:
        state = self.talk.state[self.domain]
        timed = any(slot in state for slot in TIMES)
        return [slot for slot in ASKABLE[self.domain] if slot not in state and not (timed and slot == "leaveat")]

    def _request(self) -> None:
        options = self._open_slots()
        likely = [
            slot for slot in options if slot in self.pending or (slot == "leaveat" and "arriveby" in self.pending)
        ]
        slot = self.talk.rng.choice(likely if likely and (self.domain == "train" or self.talk.chance(0.7)) else options)
        matches, self.asked = len(self._matches()), True
        self.talk.replies(lambda: self.talk.agent.request(self.domain, slot, matches))
        told, self.pending = self.pending, {}
        indifferent = not any(each in told for each in (slot, *(TIMES if slot == "leaveat" else ())))
        update = told | ({slot: "dontcare"} if indifferent else {})

        def answer() -> Speech:
            shrug = self.talk.user.dont_care(self.domain, slot) if indifferent else Speech(())
            return shrug + self.talk.user.tell(self.domain, told) if told else shrug

        self._says(answer, update)

    def _relax(self) -> None:
        topic, final = self._settle()
        wrong = {slot: value for slot, value in self.talk.state[self.domain].items() if value != "dontcare"}
        self.talk.replies(lambda: self.talk.agent.no_offer(self.domain, wrong, topic))
        self._says(lambda: self.talk.user.relax(self.domain, {topic: final}), {topic: final})

    def _offer_early(self) -> None:
        matches = self._matches()
        record = self.talk.rng.choice(matches)
        if self.domain == "train":
            self.talk.replies(lambda: self.talk.agent.offer_train(record, len(matches), nameless=False))
        else:
            self.talk.replies(lambda: self.talk.agent.offer(self.domain, record, len(matches)))
        self.refined = True
        if self.pending:
            told, self.pending = self.pending, {}
            self._says(lambda: self.talk.user.refine(self.domain, told), told)
        else:
            slot, final = self._settle()
            self._says(lambda: self.talk.user.change(self.domain, {slot: final}), {slot: final})

    def _settle(self) -> tuple[str, str]:
        (slot,) = self.misgivings
        self.misgivings = {}
        return slot, self.wish.constraints[slot]

    def _offer(self) -> None:
        matches = self._matches()
        self.venue = self._pick(matches)
        delegated = bool(self.merged) and self.domain != "train" and "name" not in self.wish.constraints
        tempted = (delegated or self.refined) and len(matches) > 1
        self.named = not (self.talk.hurried and tempted)
        answered = self._answered(self.merged)
        follow = not self.merged and self.talk.chance(0.35)

        def offer() -> Speech:
            if self.domain == "train":
                speech = self.talk.agent.offer_train(self.venue, len(matches), nameless=not self.named)
            elif self.named:
                speech = self.talk.agent.offer(self.domain, self.venue, len(matches))
            else:
                speech = self.talk.agent.offer_nameless(self.domain, len(matches))
            if answered:
                speech += self.talk.agent.answer_also(self.domain, self.venue, answered)
            if follow:
                speech += self.talk.agent.follow_up(self.domain, booking=self.domain != "attraction")
            return speech

        self.talk.replies(offer)
        self._asked_again(self.merged, answered)
        self.merged = []

    def _pick(self, matches: list[Record]) -> Record:
        if self.domain != "train":
            return self.talk.rng.choice(matches)
        if "arriveby" in self.wish.constraints:
            return max(matches, key=lambda record: record["arriveBy"])
        return min(matches, key=lambda record: record["leaveAt"])

    def _answered(self, asks: Sequence[str]) -> list[str]:
        """What of the asked slots the agent answers."""
        if self.talk.hurried and (len(asks) > 2 or (len(asks) == 2 and self.talk.chance(0.06))):
            return list(asks[:-1])
        return list(asks)

    def _accepted(self) -> dict[str, str]:
        """The offered name enters the state when the user takes it up."""
        if self.named and self.domain != "train" and self.talk.chance(0.4):
            return {"name": self.venue["name"]}
        return {}

    def _question(self) -> None:
        asks, self.asks = self.asks, []
        named = self.named and self.domain != "train" and self.talk.chance(0.35)
        answered = self._answered(asks)
        more = self.talk.chance(0.25)
        self._says(
            lambda: self.talk.user.appreciate() + self.talk.user.ask(self.domain, asks),
            self._accepted(),
            asks=asks,
        )
        self.talk.replies(lambda: self._answer(answered, named=named, more=more))
        self._asked_again(asks, answered)

    def _answer(self, slots: Sequence[str], *, named: bool = False, more: bool = False) -> Speech:
        speech = self.talk.agent.answer(self.domain, self.venue, slots, named=named)
        return speech + self.talk.agent.anything_else() if more else speech

    def _asked_again(self, asks: Sequence[str], answered: Sequence[str]) -> None:
        """A user who notices what is missing asks again, once."""
        missing = [slot for slot in asks if slot not in answered]
        if missing and self.talk.chance(0.2):
            self.merged = []
            self._says(lambda: self.talk.user.ask_again(self.domain, missing), asks=missing)
            self.talk.replies(lambda: self._answer(missing))

    def _book(self) -> None:
        if self.asks and self.talk.chance(0.65):
            self._question()
        terms = dict(self.wish.booking)
        withheld = self._withhold(terms)
        asks, self.asks = self.asks, []
        first = {slot: value for slot, value in terms.items() if slot not in withheld}

        def request() -> Speech:
            speech = self.talk.user.book(self.domain, first) + self.talk.user.ask_reference(self.domain)
            return speech + self.talk.user.ask_also(self.domain, asks) if asks else speech

        self._says(request, self._accepted() | first, intent="book", asks=(*asks, "ref"))
        for slot in withheld:
            self._fill_in(slot, terms[slot])
        if refused(terms):
            self._rebook(terms)
        self._confirm(terms, asks)

    def _withhold(self, terms: dict[str, str]) -> list[str]:
        if len(terms) < 2 or self.brisk or not self.talk.chance(0.3):
            return []
        return [self.talk.rng.choice(list(terms))]

    def _fill_in(self, slot: str, value: str) -> None:
        self.talk.replies(lambda: self.talk.agent.request_booking(self.domain, slot))
        self._says(lambda: self.talk.user.tell(self.domain, {slot: value}), {slot: value}, intent="book")

    def _rebook(self, terms: dict[str, str]) -> None:
        shown = {slot: terms[slot] for slot in terms if slot != "bookpeople"}
        nameless = not self.named
        self.talk.replies(lambda: self.talk.agent.not_booked(self.venue, shown, nameless=nameless))
        terms.update(self.wish.rebooking)
        self._says(
            lambda: self.talk.user.rebook(self.domain, self.wish.rebooking),
            self.wish.rebooking,
            intent="book",
        )

    def _confirm(self, terms: dict[str, str], asks: Sequence[str]) -> None:
        forgets = self.talk.hurried and not asks and self.talk.chance(0.06)
        answered = [] if self.talk.hurried else list(asks)
        more = not asks and self.talk.chance(0.35)

        def confirm() -> Speech:
            speech = self.talk.agent.booked(self.domain, self.venue, terms, nameless=not self.named)
            if not forgets:
                speech += self.talk.agent.reference(self.domain)
            if answered:
                speech += self.talk.agent.answer_also(self.domain, self.venue, answered)
            return speech + self.talk.agent.anything_else() if more else speech

        self.talk.replies(confirm, books=self.domain)
        self._asked_again([slot for slot in asks if slot in SCORED], answered)


def close(talk: Conversation) -> None:
    """Say goodbye on both sides."""
    talk.says(talk.user.goodbye)
    talk.replies(talk.agent.goodbye)
