"""Delexicalised replies from span annotations, as the standard scorer derives its references."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from morejax.tasks.multiwoz.canonical import PLACEHOLDER_TOKEN
from morejax.tasks.multiwoz.normalise import PLACEHOLDER

Span = Sequence[Any]
"""``[act, slot, value, start, end]``: an entry of ``span_info`` in ``dialog_acts.json``; ``end`` is exclusive."""


def delexicalise(utterance: str, spans: Sequence[Span]) -> str:
    """Replace annotated spans by placeholder tokens, in lower case.

    Of overlapping spans the one that starts first counts; "dontcare" spans are left as text. Then
    ``normalise_response(delexicalise(utterance, spans))`` is the standard's reference of the turn.

    Args:
        utterance: surface text of the turn.
        spans: the turn's ``span_info`` in ``dialog_acts.json`` (the standard does not use ``frames[].slots``).

    Returns:
        E.g. ``"[name] is in the [area] . its postcode is [postcode]"``; tokens are those of `canonical.PLACEHOLDERS`.

    Raises:
        ValueError: a span is not of the form ``[act, slot, value, start, end]`` or lies outside the utterance.
    """
    parts: list[str] = []
    position = 0
    for slot, value, start, end in sorted((_checked(span, utterance) for span in spans), key=lambda s: s[2]):
        if start < position or value == "dontcare":
            continue
        parts += [utterance[position:start], f"[{slot}]"]
        position = end
    marked = "".join([*parts, utterance[position:]]).lower()
    return " ".join(PLACEHOLDER.sub(_token, marked).split())


def _checked(span: Span, utterance: str) -> tuple[str, str, int, int]:
    try:
        _, slot, value, start, end = span
        inside = 0 <= start <= end <= len(utterance)
    except (TypeError, ValueError):
        raise ValueError(f"span {span!r}: expected [act, slot, value, start, end]") from None
    if not inside:
        raise ValueError(f"span {span!r} lies outside the utterance, which has {len(utterance)} characters")
    return slot, value, start, end


def _token(found: re.Match[str]) -> str:
    # The plural ending stays: normalising the token again removes it, as it does with the standard's own placeholder.
    token = PLACEHOLDER_TOKEN.get(found.group(1))
    return token + found.group(2) if token else ""
