"""The simulated user: latent trust, patience and understanding, what a reply does to them, and what the user does next.

Everything here is a pure function of arrays, a row a dialogue, under NumPy or JAX; randomness comes in as numbers in
[0, 1). Updates, all clipped to [0, 1] (o: what the user notices of a reply, `observation.Observed`):

    trust'         = trust + right r + disclosed d + kind k + pleased y - disappointed n
                     - wrong (w + (W - w) severity) - contradiction c - pushy p - repeated q
    patience'      = patience - turn - long l - unanswered a - unkind u
    understanding' = understanding + answered s + disclosed e - contradiction f - long g
    friction'      = friction + unanswered + not_acted + pushy + long / 2          (not clipped above)

Conversion, satisfaction and hand-off follow from the final state, see `outcomes`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np

HUMAN_TURN = 0.5
"""Probability that a user who wants a human anyway asks in a given turn."""


class Latent(NamedTuple):
    """State of mind, f[N] each."""

    trust: Any
    """In [0, 1], also `patience`, `understanding`, `sensitivity` (to prices) and `fit` (how well the offer suits)."""
    patience: Any
    understanding: Any
    friction: Any
    """Trouble so far, from 0."""
    sensitivity: Any
    fit: Any


class Observed(NamedTuple):
    """What a user makes of one reply; f[N] in [0, 1] each."""

    right: Any
    """Share of what was due that is right."""
    answered: Any
    """Share of what was due that is answered, rightly or not."""
    wrong: Any
    """Has the user noticed something misstated?"""
    severity: Any
    """Largest relative error of the figures."""
    contradiction: Any
    disclosed: Any
    """Has all been disclosed that was due?"""
    kind: Any
    unkind: Any
    """No kind word where one was due."""
    pleased: Any
    """A yes."""
    disappointed: Any
    """A no."""
    pushy: Any
    repeated: Any
    long: Any
    """Excess over the token budget, 1 for twice the budget."""
    not_acted: Any
    """The agent left to the user what it should have done."""


@dataclass(frozen=True)
class Setting:
    """One population of users and how replies move them.

    Attributes:
        trust, patience, understanding: lowest and highest value at the start.
        trust_*, patience_*, understanding_*: weights of the updates.
        notice, notice_size: probability of noticing a misstatement, and its growth with the relative error.
        human_trust, human_patience: below either the user is fed up.
        escalate: probability that a user who is fed up asks for a human in a given turn.
        leave_patience: below it a user who does not ask for a human leaves.
        wants_human: probability that a user wants a human whatever the agent does.
        object: probability of an objection to an offer; `object_price` its growth with price gap and sensitivity.
        repeat: probability of asking again what was not answered; the rest goes on.
        change: probability of asking for less after a refusal for the limit.
        second_thoughts: probability of asking for less although the answer was yes.
        give_up: probability of leaving when a wish for a human is ignored.
        smalltalk: probability of a turn without a question.
        upset: probability of a complaint; `upset_impatience` its growth with lost patience.
        information: share of contacts who want information only.
        bias, fit, convert_trust, convert_understanding, friction, price: b0 to b5 of conversion.
        fair_cost: total cost as a share of the amount above which a price seems too high.
        mood, mood_*: of satisfaction; `mood_noise` is the scale of logistic noise.
        response: probability that a survey is answered.
    """

    trust: tuple[float, float]
    patience: tuple[float, float]
    understanding: tuple[float, float]
    trust_right: float
    trust_disclosed: float
    trust_kind: float
    trust_pleased: float
    trust_disappointed: float
    trust_wrong: float
    trust_wrong_large: float
    trust_contradiction: float
    trust_pushy: float
    trust_repeated: float
    patience_turn: float
    patience_long: float
    patience_unanswered: float
    patience_unkind: float
    understanding_answered: float
    understanding_disclosed: float
    understanding_contradiction: float
    understanding_long: float
    notice: float
    notice_size: float
    human_trust: float
    human_patience: float
    escalate: float
    leave_patience: float
    wants_human: float
    object: float
    object_price: float
    repeat: float
    change: float
    second_thoughts: float
    give_up: float
    smalltalk: float
    upset: float
    upset_impatience: float
    information: float
    bias: float
    fit: float
    convert_trust: float
    convert_understanding: float
    friction: float
    price: float
    fair_cost: float
    mood: float
    mood_trust: float
    mood_patience: float
    mood_understanding: float
    mood_success: float
    mood_handoff: float
    mood_noise: float
    response: float

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            low = value[0] if isinstance(value, tuple) else value
            if field.name not in ("bias", "mood") and low < 0:
                raise ValueError(f"Setting.{field.name} is {value}, expected no negative number")
        if self.trust_wrong_large < self.trust_wrong:
            raise ValueError(
                f"Setting.trust_wrong_large is {self.trust_wrong_large}, expected at least trust_wrong "
                f"{self.trust_wrong}: a large error must not hurt less than a small one"
            )


PATIENT = Setting(
    trust=(0.35, 0.75), patience=(0.70, 1.00), understanding=(0.10, 0.40),
    trust_right=0.06, trust_disclosed=0.04, trust_kind=0.04, trust_pleased=0.06, trust_disappointed=0.04,
    trust_wrong=0.15, trust_wrong_large=0.45, trust_contradiction=0.25, trust_pushy=0.20, trust_repeated=0.10,
    patience_turn=0.04, patience_long=0.10, patience_unanswered=0.20, patience_unkind=0.04,
    understanding_answered=0.15, understanding_disclosed=0.10, understanding_contradiction=0.20,
    understanding_long=0.08, notice=0.35, notice_size=0.50,
    human_trust=0.15, human_patience=0.25, escalate=0.70, leave_patience=0.15, wants_human=0.04,
    object=0.10, object_price=0.40, repeat=0.80, change=0.60, second_thoughts=0.10, give_up=0.50,
    smalltalk=0.06, upset=0.05, upset_impatience=0.40, information=0.30,
    bias=-3.4, fit=1.5, convert_trust=2.5, convert_understanding=2.0, friction=0.8, price=1.8, fair_cost=0.08,
    mood=0.1, mood_trust=2.0, mood_patience=1.4, mood_understanding=1.0, mood_success=0.5, mood_handoff=0.8,
    mood_noise=0.30, response=0.35,
)  # fmt: skip
WARY = Setting(
    trust=(0.25, 0.60), patience=(0.50, 0.90), understanding=(0.05, 0.30),
    trust_right=0.10, trust_disclosed=0.07, trust_kind=0.03, trust_pleased=0.03, trust_disappointed=0.07,
    trust_wrong=0.25, trust_wrong_large=0.60, trust_contradiction=0.35, trust_pushy=0.30, trust_repeated=0.15,
    patience_turn=0.06, patience_long=0.16, patience_unanswered=0.28, patience_unkind=0.07,
    understanding_answered=0.20, understanding_disclosed=0.15, understanding_contradiction=0.30,
    understanding_long=0.12, notice=0.55, notice_size=0.40,
    human_trust=0.10, human_patience=0.20, escalate=0.50, leave_patience=0.12, wants_human=0.07,
    object=0.20, object_price=0.55, repeat=0.65, change=0.40, second_thoughts=0.06, give_up=0.65,
    smalltalk=0.03, upset=0.10, upset_impatience=0.60, information=0.40,
    bias=-4.4, fit=1.0, convert_trust=3.4, convert_understanding=2.6, friction=1.2, price=2.4, fair_cost=0.06,
    mood=-0.2, mood_trust=2.4, mood_patience=0.9, mood_understanding=1.2, mood_success=0.4, mood_handoff=1.1,
    mood_noise=0.40, response=0.22,
)  # fmt: skip
SETTINGS: dict[str, Setting] = {"patient": PATIENT, "wary": WARY}
"""Two populations without a common value: train against the first, test against both."""


def settings_table() -> str:
    """All parameters of all settings as a Markdown table."""

    def text(value: float | tuple[float, float]) -> str:
        return f"{value[0]:g} to {value[1]:g}" if isinstance(value, tuple) else f"{value:g}"

    lines = [f"| parameter | {' | '.join(SETTINGS)} |", "|---" * (1 + len(SETTINGS)) + "|"]
    for field in fields(Setting):
        values = " | ".join(text(getattr(setting, field.name)) for setting in SETTINGS.values())
        lines.append(f"| {field.name} | {values} |")
    return "\n".join(lines)


def between(bounds: tuple[float, float], uniform: Any) -> Any:
    """The number at a share of the way from the lower bound to the upper one."""
    return bounds[0] + (bounds[1] - bounds[0]) * uniform


def first_latent(setting: Setting, uniforms: dict[str, Any], shift: Any, xp: Any = np) -> Latent:
    """Users at the start.

    Args:
        setting: population.
        uniforms: f[N] in [0, 1) for trust, patience, understanding, sensitivity and fit.
        shift: f[N], what the day does to patience, and the opposite of it to price sensitivity.
        xp: `numpy` or `jax.numpy`.
    """
    return Latent(
        trust=between(setting.trust, uniforms["trust"]),
        patience=xp.clip(between(setting.patience, uniforms["patience"]) + shift, 0.0, 1.0),
        understanding=between(setting.understanding, uniforms["understanding"]),
        friction=xp.zeros_like(uniforms["trust"]),
        sensitivity=xp.clip(uniforms["sensitivity"] - shift, 0.0, 1.0),
        fit=uniforms["fit"],
    )


def update(latent: Latent, seen: Observed, setting: Setting, xp: Any = np) -> Latent:
    """The user after a reply; see the head of this module for the formulas."""
    s = setting
    wrong = seen.wrong * (s.trust_wrong + (s.trust_wrong_large - s.trust_wrong) * seen.severity)
    trust = latent.trust + s.trust_right * seen.right + s.trust_disclosed * seen.disclosed + s.trust_kind * seen.kind
    trust = trust + s.trust_pleased * seen.pleased - s.trust_disappointed * seen.disappointed - wrong
    trust = trust - s.trust_contradiction * seen.contradiction - s.trust_pushy * seen.pushy
    trust = trust - s.trust_repeated * seen.repeated
    patience = latent.patience - s.patience_turn - s.patience_long * seen.long
    patience = patience - s.patience_unanswered * (1.0 - seen.answered) - s.patience_unkind * seen.unkind
    understanding = latent.understanding + s.understanding_answered * seen.answered
    understanding = understanding + s.understanding_disclosed * seen.disclosed
    understanding = understanding - s.understanding_contradiction * seen.contradiction
    understanding = understanding - s.understanding_long * seen.long
    return latent._replace(
        trust=xp.clip(trust, 0.0, 1.0),
        patience=xp.clip(patience, 0.0, 1.0),
        understanding=xp.clip(understanding, 0.0, 1.0),
        friction=latent.friction + (1.0 - seen.answered) + seen.not_acted + seen.pushy + 0.5 * seen.long,
    )


class Move(IntEnum):
    """What a user does next; the first three end the dialogue."""

    DECIDE = 0
    LEAVE = 1
    HANDED_OVER = 2
    ASK = 3
    REPEAT = 4
    OBJECT = 5
    CHANGE = 6
    HUMAN = 7
    SMALLTALK = 8


class Situation(NamedTuple):
    """Where a dialogue stands when the user decides what to do; bool[N] unless said otherwise."""

    transferred: Any
    """The agent has passed the user on."""
    asked_human: Any
    """The user has just asked for a human."""
    wants_human: Any
    """The user wants one whatever the agent does."""
    unanswered: Any
    """Most of what was asked was not answered."""
    repeated: Any
    """The user has just asked again."""
    offered: Any
    """The agent has just said yes to the goal."""
    objected: Any
    """The user has objected before."""
    refused_limit: Any
    """The agent has just said no to the goal because of the limit."""
    may_change: Any
    """The request can still be changed."""
    more: Any
    """There are questions left."""
    price_gap: Any
    """f[N] in [0, 1]."""


def next_move(latent: Latent, now: Situation, uniforms: dict[str, Any], setting: Setting, xp: Any = np) -> Any:
    """What users do next: the first of these that holds, i32[N] of `Move`.

    Args:
        latent: after the reply.
        now: where the dialogue stands.
        uniforms: f[N] in [0, 1) for give_up, human, repeat, object, change and smalltalk.
        setting: population.
        xp: `numpy` or `jax.numpy`.
    """
    s = setting
    fed_up = (latent.trust < s.human_trust) | (latent.patience < s.human_patience)
    objects = uniforms["object"] < s.object + s.object_price * now.price_gap * latent.sensitivity
    conditions = (
        (now.transferred, Move.HANDED_OVER),
        (now.asked_human & (uniforms["give_up"] < s.give_up), Move.LEAVE),
        (fed_up & (uniforms["human"] < s.escalate), Move.HUMAN),
        (latent.patience < s.leave_patience, Move.LEAVE),
        (now.wants_human & (uniforms["human"] < HUMAN_TURN), Move.HUMAN),
        (now.unanswered & ~now.repeated & (uniforms["repeat"] < s.repeat), Move.REPEAT),
        (now.offered & ~now.objected & objects, Move.OBJECT),
        (now.refused_limit & now.may_change & (uniforms["change"] < s.change), Move.CHANGE),
        (now.more & now.offered & now.may_change & (uniforms["change"] < s.second_thoughts), Move.CHANGE),
        (now.more & (uniforms["smalltalk"] < s.smalltalk), Move.SMALLTALK),
        (now.more, Move.ASK),
    )
    move = xp.full(latent.trust.shape, int(Move.DECIDE), np.int32)
    for condition, result in reversed(conditions):
        move = xp.where(condition, int(result), move)
    return move
