"""Venue names in the states that a model writes: those that the user has said.

Replies stand delexicalised in the context, so a model cannot know the name of a venue that was offered. Gold states
hold it once the user has taken the offer, and who learns from them writes names that merely sound right. Each of those
asks the database for another venue than the user's (experiments/multiwoz/RESULTS.md, end to end).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rapidfuzz.distance import Indel

from morejax.tasks.multiwoz.records import State

_WORD = re.compile(r"[a-z0-9]+")
# Words that many names share.
_COMMON = {"the", "a", "and", "at", "of", "in", "cambridge"}
_COMMON |= {"bar", "bed", "breakfast", "college", "guest", "guesthouse", "hotel", "house", "museum", "restaurant"}
_ALIKE = 0.8
"""Similarity from which a word counts as another one misspelt: 1 - indel distance / letters of both."""


def is_said(name: str, utterances: Sequence[str]) -> bool:
    """Do at least half of the words that tell a name from others stand in the utterances, misspelt or not?

    Args:
        name: of a venue.
        utterances: of the user.
    """
    words = _WORD.findall(name.lower())
    telling = [word for word in words if word not in _COMMON] or words
    said = {word for text in utterances for word in _WORD.findall(text.lower())}
    found = sum(
        word in said or any(Indel.normalized_similarity(word, other) >= _ALIKE for other in said) for word in telling
    )
    return 2 * found >= len(telling)


def without_unsaid_names(state: State, utterances: Sequence[str]) -> State:
    """The state without venue names that the user has not said, and without domains that have nothing else.

    Args:
        state: as a model has written it.
        utterances: of the user, up to where the state stands.
    """
    kept = {
        domain: {slot: value for slot, value in slots.items() if slot != "name" or is_said(value, utterances)}
        for domain, slots in state.items()
    }
    return {domain: slots for domain, slots in kept.items() if slots}
