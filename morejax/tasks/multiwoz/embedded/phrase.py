"""Templates to text: phrases of plain and annotated pieces, realised with exact character spans.

A template is text with ``{slot}`` fields and ``[one|other|]`` alternatives (not nested); ``a(n)`` becomes
"a" or "an" by the letter that follows it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

ALTERNATIVES = re.compile(r"\[([^\]]*\|[^\]]*)\]")
FIELD = re.compile(r"\{(\w+)\}")
CONTRACTIONS = (
    ("I am ", "I'm "),
    ("I would ", "I'd "),
    ("I will ", "I'll "),
    ("that is ", "that's "),
    ("it is ", "it's "),
    ("there is ", "there's "),
    ("do not ", "don't "),
    ("does not ", "doesn't "),
    ("we are ", "we're "),
    ("you are ", "you're "),
    ("let us ", "let's "),
)


@dataclass(frozen=True)
class Piece:
    """A stretch of text; with ``act`` and ``slot`` it is an annotated value."""

    text: str
    act: str = ""
    slot: str = ""


Phrase = tuple[Piece, ...]


@dataclass(frozen=True)
class Span:
    """An annotated value: ``utterance.text[start:end] == value``."""

    act: str
    slot: str
    value: str
    start: int
    end: int


@dataclass(frozen=True)
class Utterance:
    """Realised text, its spans in order, and its acts without a span, such as ``(act, slot, "?")``."""

    text: str
    spans: tuple[Span, ...]
    bare_acts: tuple[tuple[str, str, str], ...] = ()

    @property
    def words(self) -> int:
        """Number of space-separated words."""
        return len(self.text.split())

    def dialog_act(self) -> dict[str, list[list[str]]]:
        """Acts in the form of ``dialog_acts.json``: act name -> list of [slot, value]."""
        acts: dict[str, list[list[str]]] = {}
        for span in self.spans:
            acts.setdefault(span.act, []).append([span.slot, span.value])
        for act, slot, value in self.bare_acts:
            acts.setdefault(act, []).append([slot, value])
        return acts


@dataclass(frozen=True)
class Speech:
    """What is said in one or more sentences, with the acts that have no annotated value.

    Adding two speeches puts one sentence after the other.
    """

    phrase: Phrase
    acts: tuple[tuple[str, str, str], ...] = ()

    def __add__(self, other: Speech) -> Speech:
        first = end_sentence(self.phrase) if other.phrase else self.phrase
        return Speech(join([first, other.phrase]), self.acts + other.acts)


def end_sentence(phrase: Phrase) -> Phrase:
    """Close a phrase with a full stop unless it ends with a mark already."""
    if phrase and not phrase[-1].text.rstrip().endswith((".", "?", "!", ":")):
        return (*phrase, Piece("."))
    return phrase


def expand(template: str, rng: random.Random) -> str:
    """Choose one of every ``[..|..]`` of a template."""
    return ALTERNATIVES.sub(lambda match: rng.choice(match.group(1).split("|")), template)


def fill(template: str, values: Mapping[str, str | Phrase], act: str, rng: random.Random) -> Phrase:
    """Realise a template: text values become annotated pieces of ``act``, phrases are inserted as they are.

    Raises:
        KeyError: the template names a field that ``values`` does not have.
    """
    pieces: list[Piece] = []
    for index, part in enumerate(FIELD.split(expand(template, rng))):
        value = values[part] if index % 2 else (Piece(part),)
        pieces.extend((Piece(value, act, part),) if isinstance(value, str) else value)
    return tuple(piece for piece in pieces if piece.text)


def plain(text: str) -> Phrase:
    """A phrase without annotations; empty for empty text."""
    return (Piece(text),) if text else ()


def join(parts: Sequence[Phrase], separator: str = " ") -> Phrase:
    """Join the non-empty phrases by a separator."""
    joined: Phrase = ()
    for part in parts:
        if part:
            joined += (plain(separator) if joined else ()) + part
    return joined


def enumerate_phrases(parts: Sequence[Phrase]) -> Phrase:
    """``a``, ``a and b``, ``a, b and c``."""
    if len(parts) < 2:
        return join(parts)
    return join([join(parts[:-1], ", "), parts[-1]], " and ")


def realise(
    phrase: Phrase,
    bare_acts: Sequence[tuple[str, str, str]] = (),
    *,
    contract: bool = False,
    lower: bool = False,
) -> Utterance:
    """Text and spans of a phrase: articles agreed, sentences capitalised, as asked."""
    pieces = _agree_articles(_merge_plain(phrase))
    if contract:
        pieces = [piece if piece.slot else replace(piece, text=_contract(piece.text)) for piece in pieces]
    text = "".join(piece.text for piece in pieces)
    text = text.lower() if lower else _capitalise(text)
    spans, start = [], 0
    for piece in pieces:
        end = start + len(piece.text)
        if piece.slot:
            spans.append(Span(piece.act, piece.slot, text[start:end], start, end))
        start = end
    return Utterance(text, tuple(spans), tuple(dict.fromkeys(bare_acts)))


def _merge_plain(phrase: Phrase) -> list[Piece]:
    merged: list[Piece] = []
    for piece in phrase:
        if merged and not piece.slot and not merged[-1].slot:
            merged[-1] = Piece(merged[-1].text + piece.text)
        else:
            merged.append(piece)
    return merged


def _agree_articles(pieces: list[Piece]) -> list[Piece]:
    following = [piece.text[:1] for piece in pieces[1:]] + [""]
    agreed = []
    for piece, after in zip(pieces, following, strict=True):
        if not piece.slot and "a(n)" in piece.text:
            text = re.sub(r"a\(n\) (.?)", lambda match, after=after: _article(match.group(1), after), piece.text)
            piece = replace(piece, text=text)
        agreed.append(piece)
    return agreed


def _article(inside: str, after: str) -> str:
    return ("an " if (inside or after).lower() in tuple("aeiou8") else "a ") + inside


def _contract(text: str) -> str:
    for long, short in CONTRACTIONS:
        text = re.sub(r"\b" + long, short, text)
    return text


def _capitalise(text: str) -> str:
    return re.sub(r"(^|[.!?] )([a-z])", lambda match: match.group(1) + match.group(2).upper(), text)
