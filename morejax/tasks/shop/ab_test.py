"""A simulated A/B test: every arm meets the same users on the same days; paired differences over days.

Protocol, fixed beforehand: the number of dialogues is given, every arm is played to the end, and nothing is looked at
on the way. Common random numbers: contacts, minds, words and chances are looked up by (day, dialogue, turn, purpose),
see `randomness`, so that arms which say the same have the same outcome, and their difference is exactly 0.

    share of the oracle's lift recovered = (arm - control) / (oracle - control)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from morejax.tasks.shop.ab_metrics import METRICS
from morejax.tasks.shop.agents import Agent, oracle_agent
from morejax.tasks.shop.bootstrap import Estimate, day_sums, day_weights, interval, percentiles, replicates
from morejax.tasks.shop.contacts import Contacts, chosen, make_contacts, other_users, spread
from morejax.tasks.shop.context import ContextConfig, Serialiser
from morejax.tasks.shop.play import Outcomes, play
from morejax.tasks.shop.user_model import SETTINGS, Setting
from morejax.tasks.shop.world import SPLITS

ORACLE = "oracle"
RELIABILITY_TRIALS = 4
PAPER = {"conversion": 0.1653, "reached_conversion": 0.3009, "share": 0.60}
"""Lifts and share of the human lift that the paper reports for its two production systems."""


@dataclass(frozen=True)
class Plan:
    """An experiment, fixed before it is run."""

    arms: tuple[str, ...]
    control: str
    oracle: str
    settings: tuple[str, ...]
    dialogues: int
    days: int
    seed: int
    split: str
    reliability_cases: int

    def __post_init__(self) -> None:
        if self.control not in self.arms:
            raise ValueError(f"control is {self.control!r}, expected one of the arms {', '.join(self.arms)}")
        unknown = sorted(set(self.settings) - set(SETTINGS))
        if unknown or not self.settings:
            raise ValueError(f"settings is {self.settings}, expected some of {', '.join(SETTINGS)}")
        if self.split not in SPLITS:
            raise ValueError(f"split is {self.split!r}, expected one of {', '.join(SPLITS)}")
        if self.days < 2:
            raise ValueError(f"days is {self.days}, expected at least 2")
        if self.dialogues < self.days:
            raise ValueError(f"dialogues is {self.dialogues}, expected at least one for each of {self.days} days")
        if self.reliability_cases < 0:
            raise ValueError(f"reliability_cases is {self.reliability_cases}, expected at least 0")


@dataclass(frozen=True)
class Results:
    """Outcomes of all arms in all settings, and what follows from them.

    Attributes:
        plan: what was run.
        outcomes: by setting and arm.
        reliable: by setting and arm, bool[cases]: right with all of four different users, pass^4.
        reliable_day: by setting, the days of these cases.
    """

    plan: Plan
    outcomes: Mapping[str, Mapping[str, Outcomes]]
    reliable: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    reliable_day: Mapping[str, np.ndarray] = field(default_factory=dict)

    @cached_property
    def _weights(self) -> np.ndarray:
        return day_weights(self.plan.days, seed=self.plan.seed)

    def _sums(self, setting: str, arm: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
        if metric == "pass4":
            right, day = self.reliable[setting][arm], self.reliable_day[setting]
            return day_sums(right, day, self.plan.days), day_sums(np.ones(len(day)), day, self.plan.days)
        outcomes, chosen = self.outcomes[setting][arm], METRICS[metric]
        columns = (chosen.numerator(outcomes), chosen.denominator(outcomes))
        numerator, denominator = (day_sums(column, outcomes.day, self.plan.days) for column in columns)
        return numerator, denominator

    def _drawn(self, setting: str, arm: str, metric: str) -> tuple[float, np.ndarray]:
        """Estimate and replicates."""
        numerator, denominator = self._sums(setting, arm, metric)
        value = numerator.sum() / denominator.sum() if denominator.sum() > 0 else np.nan
        return float(value), replicates(numerator, denominator, self._weights)

    def value(self, setting: str, arm: str, metric: str) -> Estimate:
        """A metric of an arm, "pass4" or a name in `METRICS`."""
        return interval(*self._drawn(setting, arm, metric), self.plan.days)

    def difference(self, setting: str, arm: str, metric: str, base: str | None = None) -> Estimate:
        """The paired difference to the control, or to another arm."""
        mine, of_mine = self._drawn(setting, arm, metric)
        other, of_other = self._drawn(setting, base or self.plan.control, metric)
        return interval(mine - other, of_mine - of_other, self.plan.days)

    def lift(self, setting: str, arm: str, metric: str) -> Estimate:
        """The difference to the control relative to the control; NaN where that has 0."""
        mine, of_mine = self._drawn(setting, arm, metric)
        other, of_other = self._drawn(setting, self.plan.control, metric)
        if not other > 0 or not (of_other > 0).all():
            return Estimate(np.nan, np.nan, np.nan)
        return interval(mine / other - 1.0, of_mine / of_other - 1.0, self.plan.days)

    def share(self, setting: str, arm: str, metric: str) -> Estimate:
        """Share of the oracle's lift that an arm recovers; NaN where the oracle is not clearly above the control."""
        if not self.difference(setting, self.plan.oracle, metric).low > 0:
            return Estimate(np.nan, np.nan, np.nan)
        mine, oracle, control = (
            self._drawn(setting, name, metric) for name in (arm, self.plan.oracle, self.plan.control)
        )
        value = (mine[0] - control[0]) / (oracle[0] - control[0])
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn = (mine[1] - control[1]) / (oracle[1] - control[1])
        return percentiles(value, drawn[np.isfinite(drawn)])

    def latency(self, setting: str, arm: str) -> float:
        """Milliseconds of the agent's time a response, in the batches of the experiment."""
        outcomes = self.outcomes[setting][arm]
        return 1e3 * outcomes.agent_seconds / int(outcomes.turns.sum())

    def metrics(self) -> tuple[str, ...]:
        """Names of all metrics that were measured."""
        return (*METRICS, "pass4") if self.reliable else tuple(METRICS)


def ab(
    arms: Mapping[str, Agent],
    *,
    dialogues: int = 2_000,
    days: int = 14,
    seed: int = 0,
    settings: Sequence[str] = tuple(SETTINGS),
    control: str | None = None,
    split: str = "test",
    context: ContextConfig | None = None,
    reliability_cases: int | None = None,
    keep: int = 0,
    report: Callable[[int, int], None] = lambda ended, total: None,
) -> Results:
    """Runs an A/B test.

    Args:
        arms: agents by name; an arm named "oracle" is added if there is none.
        dialogues: of each arm in each setting.
        days: simulated.
        seed: of all randomness.
        settings: names in `user_model.SETTINGS`.
        control: the arm that others are compared with; the first one if None.
        split: of cases: "test", or "held_out" for rules and products that no agent was trained on.
        context: lengths of the prompts, as the models were trained with.
        reliability_cases: cases played with three more users each, for pass^4; a tenth of the dialogues if None.
        keep: transcripts of so many dialogues of each arm.
        report: is told how many dialogues have ended, and how many there are in all.

    Raises:
        ValueError: no arm, an unknown control, setting or split, fewer than two days or than one dialogue a day.
    """
    if not arms:
        raise ValueError("arms is empty, expected at least one agent")
    names = (*arms, *(() if ORACLE in arms else (ORACLE,)))
    agents = {ORACLE: oracle_agent, **arms}
    again = dialogues // 10 if reliability_cases is None else reliability_cases
    plan = Plan(names, control or names[0], ORACLE, tuple(settings), dialogues, days, seed, split, again)
    serialiser = Serialiser(context)
    total = len(plan.settings) * len(names) * (dialogues + (RELIABILITY_TRIALS - 1) * again)
    ended = 0

    def progress(count: int) -> None:
        nonlocal ended
        ended += count
        report(ended, total)

    outcomes: dict[str, dict[str, Outcomes]] = {}
    reliable: dict[str, dict[str, np.ndarray]] = {}
    reliable_day: dict[str, np.ndarray] = {}
    for name in plan.settings:
        setting = SETTINGS[name]
        contacts = make_contacts(seed, dialogues, setting, split=split, days=days)
        rows = spread(dialogues, plan.reliability_cases)
        repeated = chosen(contacts, rows)
        outcomes[name], reliable[name], reliable_day[name] = {}, {}, repeated.day
        for arm in names:
            outcomes[name][arm] = play(
                agents[arm], contacts, setting, serialiser=serialiser, keep=keep, progress=progress
            )
            others = _others_passed(agents[arm], repeated, setting, serialiser, progress)
            reliable[name][arm] = others & outcomes[name][arm].passed[rows]
    if not plan.reliability_cases:
        return Results(plan, outcomes)
    return Results(plan, outcomes, reliable, reliable_day)


def _others_passed(
    agent: Agent, contacts: Contacts, setting: Setting, serialiser: Serialiser, progress: Callable[[int], None]
) -> np.ndarray:
    """bool[cases]: right in every reply to each of three other users with the same case."""
    passed = np.ones(len(contacts), bool)
    for users in range(1, RELIABILITY_TRIALS if len(contacts) else 1):
        other = other_users(contacts, users, setting)
        passed &= play(agent, other, setting, serialiser=serialiser, progress=progress).passed
    return passed
