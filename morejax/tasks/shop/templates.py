"""Templates to text: `{slot}` fields and `[one|other|]` alternatives."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from functools import cache

_ALTERNATIVES = re.compile(r"\[([^\[\]]*)\]")


@cache
def _segments(template: str) -> tuple[str | tuple[str, ...], ...]:
    """Literal parts and tuples of alternatives, in order."""
    parts = _ALTERNATIVES.split(template)
    return tuple(tuple(part.split("|")) if number % 2 else part for number, part in enumerate(parts))


def expand(template: str, rng: random.Random) -> str:
    """One form of a template, its fields left open."""
    return "".join(
        segment if isinstance(segment, str) else segment[int(rng.random() * len(segment))]
        for segment in _segments(template)
    )


def realise(templates: Sequence[str], values: Mapping[str, str], rng: random.Random) -> str:
    """One of the templates, one form of it, fields filled in.

    Raises:
        KeyError: a field without a value.
    """
    return expand(templates[int(rng.random() * len(templates))], rng).format_map(values)


def all_forms(template: str) -> list[str]:
    """Every form of a template, its fields left open."""
    forms = [""]
    for segment in _segments(template):
        choices = (segment,) if isinstance(segment, str) else segment
        forms = [form + choice for form in forms for choice in choices]
    return forms
