"""The published MultiWOZ 2.2 response generation board, as data.

Source: README of budzianowski/multiwoz, section "Response Generation"; every row is scored on the **test**
split by the standard scorer (Tomiinek/MultiWOZ_Evaluation). ``Combined = (Inform + Success) / 2 + BLEU`` is
computed from the printed parts: the README's own column has a slip for DAMD.
"""

from __future__ import annotations

from dataclasses import dataclass

SPLIT = "test"
SOURCE = "https://github.com/budzianowski/multiwoz#response-generation"
TRACKS = ("policy", "e2e")


@dataclass(frozen=True)
class BoardRow:
    """One published system.

    Attributes:
        system: name as printed.
        track: ``"policy"`` (ground-truth state in the context) or ``"e2e"`` (the system tracks the state).
        bleu: corpus BLEU, 0 to 100; ``None`` for the corpus itself.
        inform: percent of dialogues.
        success: percent of dialogues.
        reinforced: known to learn (also) from rewards.
        length: mean response length in tokens, where printed.
        cond_entropy: conditional bigram entropy in bits, where printed.
        words: distinct words, where printed.
        trigrams: distinct 3-grams, where printed.
    """

    system: str
    track: str
    bleu: float | None
    inform: float
    success: float
    reinforced: bool = False
    length: float | None = None
    cond_entropy: float | None = None
    words: int | None = None
    trigrams: int | None = None

    @property
    def combined(self) -> float | None:
        """(Inform + Success) / 2 + BLEU; ``None`` without BLEU."""
        return None if self.bleu is None else (self.inform + self.success) / 2 + self.bleu


REFERENCE_CORPUS = {
    track: BoardRow("Reference corpus", track, None, 93.7, 90.9, False, 14.00, 3.01, 1407, 23877) for track in TRACKS
}

POLICY_ROWS = (
    BoardRow("UniConv", "policy", 18.1, 66.7, 58.7, False, 14.17, 1.79, 338, 2932),
    BoardRow("SFN", "policy", 14.1, 93.4, 82.3, False, 14.93, 1.63, 188, 1218),
    BoardRow("HDSA", "policy", 20.7, 87.9, 79.4, False, 14.42, 1.64, 259, 2019),
    BoardRow("LAVA", "policy", 10.8, 95.9, 93.5, True, 13.28, 1.27, 176, 708),
    BoardRow("HDNO", "policy", 17.8, 93.3, 83.4, True, 14.96, 0.84, 103, 315),
    BoardRow("KRLS", "policy", 19.1, 93.1, 83.7, True, 13.82, 1.90, 489, 3885),
    BoardRow("MarCo", "policy", 17.3, 94.5, 87.2, False, 16.01, 1.94, 319, 3002),
    BoardRow("GALAXY", "policy", 19.92, 92.8, 83.5, False, 13.68, 1.75, 281, 2344),
    BoardRow("DiactTOD", "policy", 17.8, 94.8, 90.2),
)

END_TO_END_ROWS = (
    BoardRow("DAMD", "e2e", 16.4, 57.9, 47.6, False, 14.27, 1.65, 212, 1755),
    BoardRow("LABES", "e2e", 18.9, 68.5, 58.1, False, 14.20, 1.83, 374, 3228),
    BoardRow("AuGPT", "e2e", 16.8, 76.6, 60.5, False, 12.90, 2.15, 608, 5843),
    BoardRow("MinTL", "e2e", 19.4, 73.7, 65.4, False, 14.78, 1.81, 297, 2525),
    BoardRow("SOLOIST", "e2e", 13.6, 82.3, 72.4, False, 18.45, 2.41, 615, 7923),
    BoardRow("DoTS", "e2e", 16.8, 80.4, 68.7, False, 14.66, 2.10, 411, 5162),
    BoardRow("UBAR", "e2e", 17.6, 83.4, 70.3, False, 13.54, 2.10, 478, 5238),
    BoardRow("PPTOD", "e2e", 18.2, 83.1, 72.7, False, 12.73, 1.88, 301, 2538),
    BoardRow("RSTOD", "e2e", 18.0, 83.5, 75.0, False, 13.64, 1.84, 376, 3162),
    BoardRow("BORT", "e2e", 17.9, 85.5, 77.4, False, 14.91, 1.88, 294, 2492),
    BoardRow("MTTOD", "e2e", 19.0, 85.9, 76.5, False, 13.94, 1.93, 514, 4066),
    BoardRow("GALAXY", "e2e", 19.64, 85.4, 75.7, False, 13.39, 1.75, 295, 2275),
    BoardRow("RewardNet", "e2e", 17.6, 87.6, 81.5, True, 13.22, 1.99, 423, 3942),
    BoardRow("Mars", "e2e", 19.9, 88.9, 78.0, False, 13.93, 1.65, 288, 2264),
    BoardRow("KRLS", "e2e", 19.0, 89.2, 80.3, True, 13.79, 1.90, 494, 3884),
    BoardRow("DiactTOD", "e2e", 17.5, 89.5, 84.2),
)


def nearest_rows(track: str, combined: float | None = None, count: int | None = None) -> tuple[BoardRow, ...]:
    """Published systems of a track, best first, or those whose Combined score is nearest to a given one.

    Args:
        track: ``"policy"`` or ``"e2e"``.
        combined: score to look around; needed with ``count``.
        count: how many rows to keep, the nearest to ``combined``; ``None`` keeps all.

    Returns:
        Rows by falling Combined score, without the reference corpus (see :data:`REFERENCE_CORPUS`).

    Raises:
        ValueError: the track is unknown, or ``count`` comes without ``combined``.
    """
    if track not in TRACKS:
        raise ValueError(f"track {track!r}: expected one of {', '.join(TRACKS)}")
    if count is not None and combined is None:
        raise ValueError(f"count={count} asks for the nearest rows; give the Combined score to be near to")
    rows = sorted(POLICY_ROWS if track == "policy" else END_TO_END_ROWS, key=_score, reverse=True)
    if count is None or combined is None:
        return tuple(rows)
    kept = sorted(rows, key=lambda row: abs(_score(row) - combined))[:count]
    return tuple(row for row in rows if row in kept)


def _score(row: BoardRow) -> float:
    return -1.0 if row.combined is None else row.combined
