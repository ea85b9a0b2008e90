"""Random numbers that are looked up, not drawn in order: the basis of common random numbers in an A/B test.

    number(seed, day, dialogue, turn, purpose) = mix(mix(mix(seed, day), dialogue) + turn * C + purpose)

Nothing depends on how many numbers were used before. Two arms whose dialogues take another course read the same number
wherever they ask for the same purpose in the same turn of the same dialogue, and a dialogue is the same whichever
others are played beside it. The mixer is the finaliser of SplitMix64 (Steele, Lea, Flood 2014).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np

Keys = np.ndarray
"""uint64[N]: one stream of random numbers a dialogue."""


class Purpose(IntEnum):
    """What a number decides; `turn` is 0 for what is decided once a dialogue."""

    TRUST = 0
    PATIENCE = 1
    UNDERSTANDING = 2
    SENSITIVITY = 3
    FIT = 4
    WANTS_HUMAN = 5
    AGENDA = 6
    NOTICE = 7
    OBJECT = 8
    REPEAT = 9
    CHANGE = 10
    SMALLTALK = 11
    HUMAN = 12
    UPSET = 13
    WORDING = 14
    CONVERT = 15
    SATISFACTION = 16
    RESPOND = 17
    AGENT = 18
    GIVE_UP = 19


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_PURPOSES = np.uint64(64)


def mix(keys: Any) -> Any:
    """SplitMix64's finaliser, uint64 to uint64: a bijection in which every bit depends on all others."""
    keys = np.asarray(keys, np.uint64)
    with np.errstate(over="ignore"):
        keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))


def _step(keys: Any, number: Any) -> Any:
    """The key of child `number`."""
    with np.errstate(over="ignore"):
        return mix(np.asarray(keys, np.uint64) + (np.asarray(number, np.uint64) + np.uint64(1)) * _GOLDEN)


def dialogue_keys(seed: int, day: np.ndarray, dialogue: np.ndarray, users: int = 0) -> Keys:
    """Streams of dialogues.

    Args:
        seed: of the whole experiment.
        day, dialogue: i32[N].
        users: another number gives the same cases other users, for pass^k.

    Returns:
        uint64[N].
    """
    of_experiment = _step(np.uint64(seed % 2**63), users)
    return _step(_step(np.broadcast_to(of_experiment, np.shape(day)), day), dialogue)


def bits(keys: Keys, turn: Any, purpose: Purpose) -> np.ndarray:
    """uint64[N]: one number for each dialogue, turn (an int or i32[N]) and purpose."""
    return _step(keys, np.asarray(turn, np.uint64) * _PURPOSES + np.uint64(purpose))


def uniform(keys: Keys, turn: Any, purpose: Purpose) -> np.ndarray:
    """f64[N] in [0, 1), of 53 bits."""
    return (bits(keys, turn, purpose) >> np.uint64(11)).astype(np.float64) * 2.0**-53
