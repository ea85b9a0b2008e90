"""Shares of single replies in the BLEU of all."""

from __future__ import annotations

import numpy as np
import pytest

from morejax.tasks.corpus_bleu import bleu_shares, corpus_bleu


def random_counts(seed, replies=7, shorter=0):
    """Matches and totals for n = 1..4, lengths of replies and references."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(5, 20, replies)
    totals = lengths[:, None] - np.arange(4)
    matches = np.floor(totals * draw.uniform(0.1, 0.9, (replies, 1)) ** np.arange(1, 5)).astype(int)
    return matches, totals, lengths, lengths + draw.integers(-3, 4, replies) + shorter


def test_by_hand():
    # Precisions 3/4, 1/2, 1/2, 1/2 over both replies; four words where the references have six.
    matches = np.array([[2, 1, 1, 1], [1, 0, 0, 0]])
    totals = np.array([[2, 1, 1, 1], [2, 1, 1, 1]])
    lengths, references = np.array([2, 2]), np.array([2, 4])
    bleu = np.exp(1 - 6 / 4) * (0.75 * 0.5**3) ** 0.25
    assert corpus_bleu(matches, totals, lengths, references) == pytest.approx(bleu)
    precision = [(2 / 3 + 3 - 2 / 4 - 3 / 2) / 4, (1 / 3 - 2 / 4 - 3 / 2) / 4]
    brevity = [2 * 6 / 16 - 2 / 4, 2 * 6 / 16 - 4 / 4]
    expected = [bleu * (1 + 2 * (p + b)) for p, b in zip(precision, brevity, strict=True)]
    np.testing.assert_allclose(bleu_shares(matches, totals, lengths, references), expected)


@pytest.mark.parametrize("shorter", [-2, 2])
@pytest.mark.parametrize("seed", range(3))
def test_shares_are_the_derivative_by_a_replys_weight_and_average_to_the_bleu(seed, shorter):
    counts = random_counts(seed, shorter=shorter)
    bleu, shares = corpus_bleu(*counts), bleu_shares(*counts)
    assert shares.mean() == pytest.approx(bleu)
    for reply in range(len(shares)):
        weights = np.ones(len(shares))
        weights[reply] += 1e-6
        weighted = [(one.T * weights).T for one in counts]
        slope = (corpus_bleu(*weighted) - bleu) / 1e-6
        assert shares[reply] == pytest.approx(bleu + len(shares) * slope, rel=1e-4)


def test_longer_replies_with_the_same_matches_are_worth_less_unless_all_are_short():
    matches, totals, _, references = random_counts(0, shorter=-2)
    longer = totals.copy()
    longer[0] += 5
    base, stretched = (bleu_shares(matches, one, one[:, 0], references) for one in (totals, longer))
    assert stretched[0] < base[0]


def test_an_order_without_a_match_is_smoothed_and_moves_nothing():
    # 2/3, 1/2, and half a match of two and of one.
    matches, totals = np.array([[3, 1, 0, 0], [3, 2, 0, 0]]), np.array([[5, 4, 2, 1], [4, 2, 0, 0]])
    lengths = references = totals[:, 0]
    bleu = (6 / 9 * 3 / 6 * 0.5 / 2 * 0.5 / 1) ** 0.25
    assert corpus_bleu(matches, totals, lengths, references) == pytest.approx(bleu)
    shares = bleu_shares(matches, totals, lengths, references)
    assert shares.mean() == pytest.approx(bleu)
    expected = bleu * (1 + 2 * np.array([3 / 6 - 5 / 9 + 1 / 3 - 4 / 6, 3 / 6 - 4 / 9 + 2 / 3 - 2 / 6]) / 4)
    np.testing.assert_allclose(shares, expected)


def test_replies_too_short_for_an_order_are_judged_without_it():
    matches = totals = np.array([[1, 0, 0, 0], [1, 0, 0, 0]])
    np.testing.assert_allclose(bleu_shares(matches, totals, totals[:, 0], totals[:, 0]), 1.0)


def test_nothing_said_is_worth_nothing():
    zeros = np.zeros((2, 4), int)
    np.testing.assert_array_equal(bleu_shares(zeros, zeros, zeros[:, 0], np.array([4, 4])), 0.0)
