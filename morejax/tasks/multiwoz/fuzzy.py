"""Partial string similarity as the standard scorer computes it (fuzzywuzzy over python-Levenshtein)."""

from __future__ import annotations

from functools import lru_cache

from rapidfuzz.distance import Indel, Levenshtein


@lru_cache(maxsize=1 << 17)
def partial_ratio(first: str, second: str) -> int:
    """Similarity of the shorter string to the best aligned, equally long part of the longer one, 0 to 100.

    Candidates are the parts that start where a block of the minimal Levenshtein alignment starts; the score
    of a part is ``round(100 * (1 - indel_distance / total_length))``. ``rapidfuzz.fuzz.partial_ratio`` looks
    at every part and so often gives more: the standard's threshold belongs to this, the older, definition.

    Args:
        first: a string; it is the shorter one if both are equally long.
        second: a string.

    Returns:
        100 for equal strings (also both empty), 0 if only one is empty.
    """
    if first == second:
        return 100
    if not first or not second:
        return 0
    short, long = (first, second) if len(first) <= len(second) else (second, first)
    best = 0.0
    for block in Levenshtein.opcodes(short, long).as_matching_blocks():
        start = max(block.b - block.a, 0)
        best = max(best, Indel.normalized_similarity(short, long[start : start + len(short)]))
        if best > 0.995:
            return 100
    return round(100 * best)
