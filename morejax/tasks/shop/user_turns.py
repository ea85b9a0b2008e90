"""What users say: intents of a turn to an utterance with openers, complaints, changes of mind, ellipsis and typos."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from morejax.tasks.shop import user_wording as words
from morejax.tasks.shop.templates import realise


@dataclass(frozen=True)
class UserRates:
    """How often users do what, per utterance."""

    typo: float = 0.15
    """One word with a letter lost, doubled or swapped."""
    ellipsis: float = 0.2
    """Words left out or in chat spelling."""
    lower: float = 0.6
    """No capital letters."""
    upset: float = 0.1
    """A complaint in front."""

    def __post_init__(self) -> None:
        for name, rate in vars(self).items():
            if not 0.0 <= rate <= 1.0:
                raise ValueError(f"UserRates.{name} is {rate}, expected a probability")


def user_amount(cents: int, rng: random.Random) -> str:
    """An amount as users write it."""
    whole, rest = divmod(cents, 100)
    exact = f"{whole}.{rest:02d}" if rest else str(whole)
    return (f"${exact}", f"${whole}.{rest:02d}", f"{exact} dollars", exact)[int(rng.random() * 4)]


def utterance(
    intents: Sequence[str],
    values: Mapping[str, str],
    rng: random.Random,
    rates: UserRates,
    *,
    first: bool,
    changed: bool = False,
    upset: bool = False,
) -> str:
    """One user turn.

    Args:
        intents: what is asked, in order.
        values: texts of amount, tenor, item and order_number.
        rng: source of randomness.
        rates: of noise.
        first: is it the first turn of the dialogue?
        changed: does the user change the amount or the months of an earlier question?
        upset: does the user complain?
    """
    questions = [realise(words.ASK[intent], values, rng) for intent in intents]
    text = questions[0]
    for question in questions[1:]:
        text += words.JOINERS[int(rng.random() * len(words.JOINERS))] + question
    if changed:
        text = realise(words.CHANGES, values, rng) + text
    if upset:
        text = realise(words.GRUMBLES, values, rng) + text
    elif not changed:
        text = realise(words.OPENERS if first else words.LATER, values, rng) + text
    return _noise(text + realise(words.ENDINGS, values, rng), rng, rates)


def _noise(text: str, rng: random.Random, rates: UserRates) -> str:
    if rng.random() < rates.ellipsis:
        for long, short in words.SHORTEN:
            text = text.replace(long, short)
    if rng.random() < rates.typo:
        text = typo(text, rng)
    return text.lower() if rng.random() < rates.lower else text[:1].upper() + text[1:]


def typo(text: str, rng: random.Random) -> str:
    """The text with one letter of one longer word lost, doubled or swapped; figures stay as they are."""
    tokens = text.split(" ")
    places = [place for place, word in enumerate(tokens) if len(word) > 3 and word.isalpha()]
    if not places:
        return text
    place = places[int(rng.random() * len(places))]
    word = tokens[place]
    at = 1 + int(rng.random() * (len(word) - 2))
    forms = (
        word[:at] + word[at + 1 :],
        word[:at] + word[at] + word[at:],
        word[: at - 1] + word[at] + word[at - 1] + word[at + 1 :],
    )
    tokens[place] = forms[int(rng.random() * 3)]
    return " ".join(tokens)
