"""Language objectives that follow from a rule: concision, and kind words where the user needs them.

Likeness to the corpus's reply is `morejax.tasks.device_rewards.overlap`; fluency and naturalness come from the frozen
language model and the reward head.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from morejax.tasks.shop.answers import Gold
from morejax.tasks.shop.ontology import INTENTS, index
from morejax.tasks.shop.tokenizer import vocabulary

BASE_TOKENS = 16
DECISION_TOKENS = 20
SLOT_TOKENS = 14
DISCLOSURE_TOKENS = 10
KIND_WORDS = ("sorry", "understand", "hear", "annoying", "fair", "unfortunately", "apologise", "regret")


@cache
def kind_table() -> np.ndarray:
    """bool[V]: tokens that show understanding."""
    ids = vocabulary()
    table = np.zeros(len(ids), bool)
    table[[ids[word] for word in KIND_WORDS if word in ids]] = True
    return table


def token_budget(gold: Gold) -> Any:
    """Tokens that a reply with all that is due may take, i32[N]."""
    slots = gold.required.sum(axis=1)
    disclosures = gold.must_say.sum(axis=1)
    return BASE_TOKENS + DECISION_TOKENS * gold.asks_decision + SLOT_TOKENS * slots + DISCLOSURE_TOKENS * disclosures


def concision(lengths: Any, gold: Gold, xp: Any = np) -> Any:
    """min(1, budget / length), f32[N]: 1 up to the budget of what is due.

    Args:
        lengths: i32[N], tokens of the replies.
        gold: what is due.
    """
    return xp.minimum(1.0, token_budget(gold) / xp.maximum(lengths, 1)).astype(np.float32)


def needs_empathy(gold: Gold, asked: Any, upset: Any) -> Any:
    """bool[N]: the user complains or objects, or gets a no."""
    return upset | asked[:, index(INTENTS, "objection")] | (gold.asks_decision & gold.denied)


def empathy(tokens: Any, mask: Any, kind_words: Any, xp: Any = np) -> Any:
    """1 where a reply shows understanding, f32[N].

    Args:
        tokens, mask: i32[N, T], bool[N, T].
        kind_words: bool[V], `kind_table`.
    """
    return (kind_words[tokens] & mask).any(axis=1).astype(np.float32)
