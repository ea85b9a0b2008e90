"""Every process scores its own dialogues; put together they are what one process makes of all."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import numpy as np
import pytest

from morejax import hosts
from morejax.tasks.streams import StackedStreams
from morejax.training.rollouts import score_replies

ARRAYS = ("rewards", "applies", "scores", "weights")


@dataclass(frozen=True)
class Prompt:
    turn: int


class Task:
    """Rewards made of the reply, its frozen models' numbers, and how many turns its dialogue has."""

    def __init__(self):
        self.scored = 0

    def sampled(self, prompts, replies, lm_logp, natural):
        assert prompts[0].turn == 0, "a dialogue was cut"
        self.scored += len(prompts)
        return prompts, replies, lm_logp, natural

    def rewards(self, batch, reply):
        prompts, replies, lm_logp, natural = batch
        starts = [row for row, prompt in enumerate(prompts) if prompt.turn == 0]
        sizes = np.diff([*starts, len(prompts)])
        scores = np.stack([[sum(ids) for ids in replies], lm_logp * natural], -1).astype(np.float32)
        rewards = np.repeat(scores[:, None], reply, axis=1)
        weights = np.repeat(np.repeat(sizes, sizes)[:, None], 2, axis=1).astype(np.float32)
        return StackedStreams(("sum", "judged"), rewards, scores > 2, scores, weights)


@pytest.mark.parametrize("sizes", [(3, 1, 2, 4), (2,), (1, 1, 1)])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_shares_make_the_whole(monkeypatch, sizes, processes):
    prompts = [Prompt(turn) for size in sizes for turn in range(size)]
    rng = np.random.default_rng(0)
    replies = [tuple(rng.integers(0, 5, 3).tolist()) for _ in prompts]
    judged = (rng.normal(size=len(prompts)), rng.normal(size=len(prompts)))
    whole = score_replies(Task(), prompts, replies, *judged, reply=4)
    parts, counts = [], []

    def keep(arrays, rows):
        parts.append(arrays)
        counts.append(rows)
        return arrays

    monkeypatch.setattr(hosts, "gather_rows", keep)
    monkeypatch.setattr(hosts, "together", lambda work: work())
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    for process in range(processes):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        scored = score_replies(Task(), prompts, replies, *judged, reply=4)
    if processes == 1:
        assert parts == []
        parts = [{name: getattr(scored, name) for name in ARRAYS}]
    else:
        assert counts == [[len(part["scores"]) for part in parts]] * processes
    for name in ARRAYS:
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), getattr(whole, name))
