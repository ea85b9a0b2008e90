"""Delexicalised replies from span annotations, as the standard scorer derives its references."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from morejax.tasks.multiwoz.canonical import PLACEHOLDER_TOKEN
from morejax.tasks.multiwoz.normalise import PLACEHOLDER

Span = Sequence[Any]
"""``[act, slot, value, start, end]``: an entry of ``span_info`` in ``dialog_acts.json``, end exclusive."""


def delexicalise(utterance: str, spans: Sequence[Span]) -> str:
    """Replace annotated spans by placeholder tokens, in lower case.

    Of overlapping spans the one that starts first counts; "dontcare" spans are left as text. Then
    ``normalise_response(delexicalise(utterance, spans))`` is the standard's reference of the turn.

    Args:
        utterance: surface text of the turn.
        spans: the turn's ``span_info`` in ``dialog_acts.json`` (not ``frames[].slots``, as in the standard).

    Returns:
        E.g. ``"[name] is in the [area]. its postcode is [postcode]"``, with `canonical.PLACEHOLDERS`.

    Raises:
        ValueError: a span is not of the form ``[act, slot, value, start, end]``.
    """
    text: list[str] = []
    position = 0
    for slot, value, start, end in sorted(map(_parts, spans), key=lambda span: span[2]):
        if start < position or value == "dontcare":
            continue
        text += [utterance[position:start], f"[{slot}]"]
        position = end
    marked = "".join([*text, utterance[position:]]).lower()
    return " ".join(PLACEHOLDER.sub(_token, marked).split())


def _parts(span: Span) -> tuple[str, str, int, int]:
    try:
        _, slot, value, start, end = span
    except (TypeError, ValueError):
        raise ValueError(f"span {span!r}: expected [act, slot, value, start, end]") from None
    if not isinstance(start, int) or not isinstance(end, int):
        raise ValueError(f"span {span!r}: expected whole numbers as start and end")
    return slot, value, start, end


def _token(found: re.Match[str]) -> str:
    # The plural ending stays: normalising the token again removes it, as it does with the standard's own
    # placeholder.
    token = PLACEHOLDER_TOKEN.get(found.group(1))
    return token + found.group(2) if token else ""
