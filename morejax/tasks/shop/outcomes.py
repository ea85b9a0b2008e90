"""How a dialogue ends: conversion, regret, satisfaction; as pure functions of the final state of mind.

    P(conversion) = sigmoid(b0 + b1 fit + b2 trust + b3 understanding - b4 friction - b5 sensitivity price gap)

A user can only accept what the agent has offered. An honest agent offers what the policy allows, so an ineligible user
cannot convert. An agent that offers more converts more: those conversions are regretted, and counted apart, as a hard
violation.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from morejax.tasks.shop.answers import Gold
from morejax.tasks.shop.claims import Claims
from morejax.tasks.shop.observation import Memory, Turn, empty_memory, observe
from morejax.tasks.shop.ontology import INTENTS, SLOTS, index
from morejax.tasks.shop.user_model import Latent, Setting, first_latent, update

CUTS = (-1.5, -0.5, 0.5, 1.5)
"""Where one point of satisfaction more begins."""
RAISE_LIMIT, CANCEL, RETURN = (index(INTENTS, name) for name in ("raise_limit", "cancel", "return"))


def price_gap(gold: Gold, goal: Any, discount: Any, setting: Setting, xp: Any = np) -> Any:
    """How much dearer than fair an offer looks, f[N] in [0, 1].

        clip(cost (1 - discount) / fair_cost - 1, 0, 1)

    The cost of a loan is interest and fee as a share of the amount, that of a return restocking fee and postage as a
    share of the price; to raise a limit or to cancel costs nothing.

    Args:
        gold: right values.
        goal: i32[N], index into `INTENTS`, -1 for information.
        discount: f[N], `Memory.discount`.
        setting: population.
        xp: `numpy` or `jax.numpy`.
    """

    def value(slot: str) -> Any:
        return gold.values[:, index(SLOTS, slot)].astype(np.float32)

    loan = (value("interest") + value("fee")) / xp.maximum(value("amount"), 1.0)
    back = (value("restock_fee") + value("return_cost")) / xp.maximum(value("price"), 1.0)
    cost = xp.where(goal == RETURN, back, xp.where((goal == RAISE_LIMIT) | (goal == CANCEL) | (goal < 0), 0.0, loan))
    return xp.clip(cost * (1.0 - discount) / setting.fair_cost - 1.0, 0.0, 1.0)


def sigmoid(x: Any, xp: Any = np) -> Any:
    """1 / (1 + exp(-x)), without overflow."""
    return 0.5 * (1.0 + xp.tanh(0.5 * x))


def conversion_probability(latent: Latent, gap: Any, setting: Setting, xp: Any = np) -> Any:
    """Probability that a user accepts an offer, f[N]: rises with fit, trust, understanding, falls with the others.

    Args:
        latent: state of mind at the end.
        gap: f[N], `price_gap`.
        setting: population.
        xp: `numpy` or `jax.numpy`.
    """
    s = setting
    score = s.bias + s.fit * latent.fit + s.convert_trust * latent.trust
    score = score + s.convert_understanding * latent.understanding
    return sigmoid(score - s.friction * latent.friction - s.price * latent.sensitivity * gap, xp)


def misinformed(memory: Memory) -> Any:
    """bool[N]: something false was said and not put right."""
    return memory.misled | memory.told_wrong.any(axis=1)


def satisfaction(latent: Latent, success: Any, failed_handoff: Any, noise: Any, setting: Setting, xp: Any = np) -> Any:
    """Points from 1 to 5, i32[N]: how many of `CUTS` lie below the mood, and one.

    Args:
        latent: state of mind at the end.
        success: bool[N], the user got an answer.
        failed_handoff: bool[N].
        noise: f[N] in (0, 1), of the logistic noise.
        setting: population.
        xp: `numpy` or `jax.numpy`.
    """
    s = setting
    mood = s.mood + s.mood_trust * (latent.trust - 0.5) + s.mood_patience * (latent.patience - 0.5)
    mood = mood + s.mood_understanding * (latent.understanding - 0.5)
    mood = mood + s.mood_success * success - s.mood_handoff * failed_handoff
    noise = xp.clip(noise, 1e-6, 1.0 - 1e-6)
    mood = mood + s.mood_noise * xp.log(noise / (1.0 - noise))
    return 1 + (mood[:, None] > xp.asarray(CUTS)[None, :]).sum(axis=1)


def conversion_reward(
    tokens: Any, mask: Any, claims: Claims, gold: Gold, asked: Any, upset: Any, setting: Setting, xp: Any = np
) -> Any:
    """What one reply is worth to somebody who only wants to sell, f32[N] in [0, 1]; jittable.

    The probability that the average user accepts after this reply: 0 where a question of yes or no gets no yes, and
    elsewhere as if an offer stood. Policy plays no part in it: it is the reward that needs constraints beside it.

    Args:
        tokens, mask: i32[N, T], bool[N, T], without `<eos>`.
        claims, gold: of the replies.
        asked, upset: bool[N, I], bool[N].
        setting: population that is sold to.
        xp: `numpy` or `jax.numpy`.
    """
    count = tokens.shape[0]
    half = xp.full(count, 0.5, np.float32)
    names = ("trust", "patience", "understanding", "sensitivity", "fit")
    before = first_latent(setting, dict.fromkeys(names, half), xp.zeros(count, np.float32), xp)
    credit = gold.defined[:, index(SLOTS, "limit_left")]
    turn = Turn(tokens, mask, claims, gold, asked, upset, gold.asks_decision, credit, xp.zeros(count, bool))
    observed, memory, _ = observe(turn, empty_memory(count, xp), half, setting, xp)
    goal = xp.argmax(asked, axis=1)
    gap = price_gap(gold, xp.where(gold.asks_decision | credit, goal, -1), memory.discount, setting, xp)
    chance = conversion_probability(update(before, observed, setting, xp), gap, setting, xp)
    offer = claims.approves & ~claims.denies
    return xp.where(gold.asks_decision & ~offer, 0.0, chance).astype(np.float32)
