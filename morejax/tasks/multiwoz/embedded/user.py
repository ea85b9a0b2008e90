"""The users of the embedded corpus: each method says one thing in one of many ways."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from morejax.tasks.multiwoz.embedded import user_wording as words
from morejax.tasks.multiwoz.embedded.phrase import Phrase, Speech, enumerate_phrases, fill, plain
from morejax.tasks.multiwoz.embedded.surface import constraint_list, noun_phrase


class User:
    """Speech acts of a user, drawn from the wording tables.

    Args:
        rng: source of randomness of the dialogue.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def open(self, domain: str, values: Mapping[str, str], *, first: bool) -> Speech:
        """Bring up a domain with at least one constraint."""
        lead = self._rng.choice(words.GREETINGS) if first and self._rng.random() < 0.4 else ""
        templates = words.OPEN if first else words.OPEN_NEXT
        wish = noun_phrase(f"{domain.title()}-Inform", values, words.NOUNS[domain], self._rng)
        return self._with_wish(lead, templates, wish)

    def tell(self, domain: str, values: Mapping[str, str]) -> Speech:
        """Answer with constraints."""
        return self._with_list(words.TELL, domain, values)

    def change(self, domain: str, values: Mapping[str, str]) -> Speech:
        """Replace a constraint after a change of mind."""
        return self._with_list(words.CHANGE, domain, values)

    def refine(self, domain: str, values: Mapping[str, str]) -> Speech:
        """Add constraints after an early offer."""
        return self._with_list(words.REFINE, domain, values)

    def relax(self, domain: str, values: Mapping[str, str]) -> Speech:
        """Replace a constraint that nothing fits."""
        return self._with_list(words.RELAX, domain, values)

    def rebook(self, domain: str, values: Mapping[str, str]) -> Speech:
        """Propose other booking terms after a refusal."""
        return self._with_list(words.REBOOK, domain, values, field="terms")

    def dont_care(self, domain: str, slot: str) -> Speech:
        """Have no preference on a slot."""
        topic = {"topic": plain(words.TOPICS[slot])}
        phrase = fill(self._choose(words.DONT_CARE), topic, "", self._rng)
        return Speech(phrase, ((f"{domain.title()}-Inform", slot, "dontcare"),))

    def book(self, domain: str, values: Mapping[str, str]) -> Speech:
        """Ask for a booking on these terms."""
        templates = words.BOOK_TRAIN if domain == "train" else words.BOOK
        return self._with_list(templates, domain, values, field="terms")

    def ask_reference(self, domain: str) -> Speech:
        """Ask for the reference number of a booking."""
        phrase = fill(self._choose(words.REFERENCE), {}, "", self._rng)
        return Speech(phrase, ((f"{domain.title()}-Request", "ref", "?"),))

    def ask(self, domain: str, slots: Sequence[str]) -> Speech:
        """Ask for attributes of what was offered."""
        return self._with_asks(words.ASK, domain, slots)

    def ask_also(self, domain: str, slots: Sequence[str]) -> Speech:
        """Ask for attributes in the same breath as something else."""
        return self._with_asks(words.ASK_ALSO, domain, slots)

    def ask_again(self, domain: str, slots: Sequence[str]) -> Speech:
        """Ask for attributes that the agent left out."""
        return self._with_asks(words.ASK_AGAIN, domain, slots)

    def delegate(self, domain: str, slots: Sequence[str]) -> Speech:
        """Leave the choice to the agent and ask for attributes."""
        return self._with_asks(words.DELEGATE, domain, slots)

    def appreciate(self) -> Speech:
        """Accept an offer; the empty speech half of the time."""
        chosen = self._choose(words.APPRECIATE) if self._rng.random() < 0.5 else ""
        return Speech(fill(chosen, {}, "", self._rng))

    def goodbye(self) -> Speech:
        """Thank and leave."""
        act = self._rng.choice(("general-thank", "general-thank", "general-bye"))
        return Speech(fill(self._choose(words.GOODBYE), {}, "", self._rng), ((act, "none", "none"),))

    def _choose(self, templates: Sequence[str]) -> str:
        return self._rng.choice(templates)

    def _with_list(
        self, templates: Sequence[str], domain: str, values: Mapping[str, str], field: str = "wish"
    ) -> Speech:
        wished = self._choose(words.NOUNS[domain])
        parts = constraint_list(f"{domain.title()}-Inform", values, wished, self._rng)
        return self._with_wish("", templates, parts, field)

    def _with_wish(self, lead: str, templates: Sequence[str], wish: Speech, field: str = "wish") -> Speech:
        phrase = fill(lead + self._choose(templates), {field: wish.phrase}, "", self._rng)
        return Speech(phrase, wish.acts)

    def _with_asks(self, templates: Sequence[str], domain: str, slots: Sequence[str]) -> Speech:
        named: list[Phrase] = [plain("the " + self._choose(words.ATTRIBUTES[slot])) for slot in slots]
        phrase = fill(self._choose(templates), {"asks": enumerate_phrases(named)}, "", self._rng)
        return Speech(phrase, tuple((f"{domain.title()}-Request", slot, "?") for slot in slots))
