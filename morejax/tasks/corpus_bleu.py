"""Corpus BLEU as a reward of single replies.

BLEU is made for corpora: precisions are of all n-grams together, and length counts over all replies. The mean of
sentence BLEU is another number: its brevity penalty strikes each reply that is shorter than its own reference, however
long the others are, and where lengths cannot be foreseen a policy does best by being long.
"""

from __future__ import annotations

import numpy as np


def corpus_bleu(matches: np.ndarray, totals: np.ndarray, lengths: np.ndarray, references: np.ndarray) -> float:
    """BLEU of all replies together, in [0, 1].

        B = min(1, e^(1 - R/C)) exp(mean_n log M_n / T_n)

    with M_n, T_n, C, R the sums over replies. Orders that no reply is long enough for are left out; half a match is
    counted for one without any.

    Args:
      matches, totals: [S, N], n-grams of each reply that its reference has, and all of them, for n = 1..N.
      lengths, references: [S], words of replies and references.

    Source: Papineni et al. 2002.
    """
    found, of, length, wanted = _sums(matches, totals, lengths, references)
    if not of.any():
        return 0.0
    brevity = min(0.0, 1.0 - float(wanted) / max(float(length), 1.0))
    precisions = np.maximum(found, 0.5)[of > 0] / of[of > 0]
    return float(np.exp(brevity + np.log(precisions).mean()))


def bleu_shares(matches: np.ndarray, totals: np.ndarray, lengths: np.ndarray, references: np.ndarray) -> np.ndarray:
    """What each reply does for the BLEU of all: f64[S], whose mean is that BLEU.

        b_i = B (1 + S d log B / d w_i)
        d log B / d w_i = mean_n (m_in / M_n - t_in / T_n) + [C < R] (c_i R / C^2 - r_i / C)

    where w_i is how often reply i counts, taken at 1 for all. b_i is above B where the corpus would gain from more
    replies like this one: B linearised, so that a policy gradient on b follows B to first order. An order without a
    match adds nothing to the derivative.

    Args:
      matches, totals, lengths, references: see `corpus_bleu`.
    """
    found, of, length, wanted = _sums(matches, totals, lengths, references)
    change = np.where(found > 0, matches / np.maximum(found, 1) - totals / np.maximum(of, 1), 0.0)
    change = change.sum(-1) / max(int((of > 0).sum()), 1)
    if 0 < length < wanted:
        change = change + lengths * wanted / length**2 - references / length
    return corpus_bleu(matches, totals, lengths, references) * (1.0 + len(matches) * change)


def _sums(*counts: np.ndarray) -> list[np.ndarray]:
    """Over replies."""
    return [np.asarray(np.sum(one, axis=0, dtype=np.float64)) for one in counts]
