"""Lexical richness and dialogue state tracking as the standard MultiWOZ scorer computes them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import log2
from typing import TYPE_CHECKING, Any

from morejax.tasks.multiwoz.canonical import RICHNESS_DROPPED
from morejax.tasks.multiwoz.fuzzy import partial_ratio

if TYPE_CHECKING:
    from morejax.tasks.multiwoz.records import State

MSTTR_WINDOW = 50
STATE_THRESHOLD = 95
_TINY = 1e-10


class ScoringError(ValueError):
    """Predictions or scoring data that the standard cannot score; the message names the dialogue or file."""


def richness(responses: Iterable[str]) -> dict[str, float]:
    """Lexical richness of normalised responses.

    ``entropy`` is the Shannon entropy of words; ``cond_entropy`` is that of a word given the one before,
    ``-sum p(a, b) log2(n(a, b) / n(a))``, both in bits; ``avg_lengths`` is words per response; ``msttr`` is
    the mean share of distinct words in consecutive windows of 50 words of all responses; ``num_*`` count
    distinct n-grams. N-grams do not cross responses. Source: Nekvinda and Dusek (2021), section 4.3.

    Args:
        responses: at least one.
    """
    sentences = [words(text) for text in responses]
    everything = [word for sentence in sentences for word in sentence]
    unigrams, bigrams, trigrams = (
        Counter(gram for sentence in sentences for gram in zip(*(sentence[i:] for i in range(n)), strict=False))
        for n in (1, 2, 3)
    )
    total = len(everything)
    return {
        "entropy": -sum(n / total * log2(n / total) for n in unigrams.values()),
        "cond_entropy": -sum(n / total * log2(n / unigrams[pair[:1]]) for pair, n in bigrams.items()),
        "avg_lengths": total / len(sentences),
        "msttr": msttr(everything),
        "num_unigrams": len(unigrams),
        "num_bigrams": len(bigrams),
        "num_trigrams": len(trigrams),
    }


def words(text: str) -> list[str]:
    """Lower-case words without punctuation, as the lexical_diversity package splits them.

    An empty text is one empty word, and so is a space at either end.
    """
    for dropped in RICHNESS_DROPPED:
        text = text.replace(dropped, "")
    return re.sub(r"\s+", " ", text).lower().split(" ")


def msttr(words: Sequence[str], window: int = MSTTR_WINDOW) -> float:
    """Mean segmental type-token ratio; words after the last full window do not count.

    Args:
        words: up to one window of them is one segment.
        window: words per segment.
    """
    if len(words) <= window:
        return len(set(words)) / len(words)
    segments = [words[i : i + window] for i in range(0, len(words) - window + 1, window)]
    return sum(len(set(segment)) / window for segment in segments) / len(segments)


def state_tracking(predicted: Mapping[str, Sequence[State]], gold: Mapping[str, Sequence[State]]) -> dict[str, float]:
    """Joint goal accuracy and slot F1 over all predicted turns.

    Two values agree if their partial ratio exceeds 95. A turn is right if both states have the same slots and
    all values agree. Precision counts predicted slots, recall gold slots, over all turns.

    Args:
        predicted: dialogue id -> per turn, the normalised predicted state.
        gold: dialogue id -> per turn, the normalised gold state.

    Returns:
        ``joint_accuracy`` and ``slot_f1`` in percent, ``slot_precision`` and ``slot_recall`` from 0 to 1.

    Raises:
        ScoringError: a value that is neither text nor null, naming its dialogue.
    """
    turns = right = both = hypothesised = wanted = 0
    for dialogue, states in predicted.items():
        for number, state in enumerate(states):
            hypothesis, reference = _flat(state), _flat(gold[dialogue][number])
            agreeing = _agreements(hypothesis, reference, f"dialogue {dialogue!r}, turn {number}")
            turns += 1
            right += hypothesis.keys() == reference.keys() and agreeing == len(reference)
            both, hypothesised, wanted = (
                both + agreeing,
                hypothesised + len(hypothesis),
                wanted + len(reference),
            )
    precision, recall = both / (hypothesised + _TINY), both / (wanted + _TINY)
    return {
        "joint_accuracy": right / (turns + _TINY) * 100,
        "slot_f1": 2 * precision * recall / (precision + recall + _TINY) * 100,
        "slot_precision": precision,
        "slot_recall": recall,
    }


def _flat(state: State) -> dict[tuple[str, str], Any]:
    return {(domain, slot): value for domain, slots in state.items() for slot, value in slots.items()}


def _agreements(hypothesis: Mapping[Any, Any], reference: Mapping[Any, Any], where: str) -> int:
    return sum(_agree(hypothesis[slot], reference[slot], where) for slot in hypothesis.keys() & reference.keys())


def _agree(value: Any, gold: Any, where: str) -> bool:
    if value is None or gold is None:
        return False
    if not isinstance(value, str) or not isinstance(gold, str):
        raise ScoringError(f"{where}: cannot compare the value {value!r} with {gold!r}, expected text")
    return partial_ratio(value, gold) > STATE_THRESHOLD
