"""Finite constrained decision processes as token sequences, and their optima by linear programming."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
from scipy.optimize import linprog


@dataclass(frozen=True)
class Optimum:
    """Solution of the linear program: weighted sum of objectives, J of all streams [H], duals of J_m >= d_m [M]."""

    value: float
    scores: np.ndarray
    multipliers: np.ndarray


@dataclass(frozen=True, eq=False)
class Process:
    """A constrained decision process as token sequences: a reply token is an action.

    The single context token is the start state, and the state at position t is (start + sum of the actions before)
    mod `states`: every model that reads its prefix can act on it. A bandit has one state and one reply token.
    """

    objectives: np.ndarray
    """[K, states, actions]: rewards."""
    constraints: np.ndarray
    """[M, states, actions]: rewards."""
    thresholds: np.ndarray
    """[M]."""
    weights: np.ndarray
    """[K]: of the objectives."""
    starts: np.ndarray
    """[states]: distribution of the start state."""
    asked: np.ndarray
    """bool[M, states]: does the constraint apply to sequences that start in this state?"""
    length: int
    """Actions taken."""
    learning_rate: float
    """Of gradient descent on a `Table`."""

    @cached_property
    def rewards(self) -> np.ndarray:
        """[H, states, actions]."""
        return np.concatenate([self.objectives, self.constraints])

    @cached_property
    def applies(self) -> np.ndarray:
        """bool[H, states]."""
        return np.concatenate([np.ones((len(self.objectives), len(self.starts)), bool), self.asked])

    @cached_property
    def share(self) -> np.ndarray:
        """[H, states]: weight of a sequence in a stream's J, by start state."""
        return self.applies / (self.applies * self.starts).sum(1, keepdims=True)

    @cached_property
    def paths(self) -> tuple[np.ndarray, np.ndarray]:
        """All sequences: tokens i32[P, 1 + T] and rewards [P, T, H]."""
        states, actions = self.rewards.shape[1:]
        tokens = np.array(list(product(np.flatnonzero(self.starts), *[range(actions)] * self.length)), np.int32)
        visited = np.cumsum(tokens, axis=1)[:, :-1] % states
        return tokens, np.moveaxis(self.rewards[:, visited, tokens[:, 1:]], 0, -1)

    def solve(self, weights: np.ndarray, constrained: bool = True) -> Optimum:
        """Maximise sum_i weights_i J_i over the occupancies x(t, start, state, action).

        Args:
          weights: [H], of all streams.
          constrained: subject to J_m >= d_m, or not.
        """
        states, actions = self.rewards.shape[1:]
        shape = (self.length, states, states, actions)
        scores = self.rewards[:, None, None] * self.share[:, None, :, None, None]
        scores = np.broadcast_to(scores, (len(scores), *shape)).reshape(len(scores), -1)
        tested = scores[len(self.objectives) :] if constrained else scores[:0]
        flows, supply = self._flows(shape)
        found = linprog(
            -(weights[:, None] * scores).sum(0),
            A_ub=-tested,
            b_ub=-self.thresholds[: len(tested)],
            A_eq=flows,
            b_eq=supply,
        )
        assert found.status == 0, found.message
        return Optimum(-found.fun, (scores * found.x).sum(1), -found.ineqlin.marginals)

    def _flows(self, shape: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
        """What flows out of (t, start, state) is what flowed in: equality rows and their right-hand sides."""
        length, states, _, actions = shape
        rows, supply = [], []
        for t, start, state in product(range(length), range(states), range(states)):
            row = np.zeros(shape)
            row[t, start, state] = 1.0
            if t:
                row[t - 1, start, (state - np.arange(actions)) % states, np.arange(actions)] -= 1.0
            rows.append(row.reshape(-1))
            supply.append(self.starts[start] if t == 0 and state == start else 0.0)
        return np.array(rows), np.array(supply)

    @cached_property
    def objective(self) -> np.ndarray:
        """[H]: weights of all streams in the program's objective: constraints are not in it."""
        return np.concatenate([self.weights, np.zeros(len(self.constraints))])

    @cached_property
    def optimum(self) -> Optimum:
        return self.solve(self.objective)


def bandit(reward: list[float], constraints: list[list[float]], thresholds: list[float]) -> Process:
    return Process(
        objectives=np.array([[reward]]),
        constraints=np.array(constraints)[:, None, :],
        thresholds=np.array(thresholds),
        weights=np.ones(1),
        starts=np.ones(1),
        asked=np.ones((len(constraints), 1), bool),
        length=1,
        learning_rate=2.0,
    )
