"""Names that a model may write into a state: those that the user has said."""

from __future__ import annotations

import pytest

from morejax.tasks.multiwoz.context import ContextConfig
from morejax.tasks.multiwoz.said_names import is_said, without_unsaid_names


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("golden lion", True),
        ("the golden lion", True),  # "the" tells nothing
        ("golden lyon", True),  # misspelt
        ("golden lion hotel", True),
        ("golden eagle", True),  # one of two words is enough
        ("silver eagle", False),
        ("hotel", True),  # of nothing but common words all count
        ("guest house", False),
        ("goldfinch", False),
    ],
)
def test_half_of_the_telling_words_have_to_be_said(name, said):
    assert is_said(name, ["I want a hotel", "The Golden Lion, please"]) == said


def test_nothing_is_said_before_the_first_word():
    assert not is_said("golden lion", [])


def test_only_names_are_dropped_and_domains_left_with_nothing():
    state = {
        "hotel": {"name": "golden lion", "area": "north"},
        "restaurant": {"name": "silver eagle", "food": "thai"},
        "attraction": {"name": "old mill"},
        "taxi": {"destination": "old mill"},
    }
    assert without_unsaid_names(state, ["the golden lion"]) == {
        "hotel": {"name": "golden lion", "area": "north"},
        "restaurant": {"food": "thai"},
        "taxi": {"destination": "old mill"},
    }


def test_another_rule_than_the_two_is_refused():
    with pytest.raises(ValueError, match=r"--context\.names is 'gold', expected 'said' or 'any'"):
        ContextConfig(names="gold")
