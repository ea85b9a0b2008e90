"""Rotary position embeddings [arXiv 2104.09864], plain and stretched."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from morejax.models.decoder_config import RopeConfig


class Rotation(NamedTuple):
    """Cosines and sines f32[B, Q, E/2] of the angles of every position."""

    cos: jax.Array
    sin: jax.Array

    def tail(self, start: int) -> Rotation:
        """Those of positions from `start` on."""
        return Rotation(self.cos[:, start:], self.sin[:, start:])


def frequencies(config: RopeConfig, head_width: int) -> tuple[np.ndarray, float]:
    """Radians a position of every pair, and what multiplies rotated queries and keys.

    Args:
      config: base and scaling.
      head_width: E.

    Returns:
      f32[E/2] and a number (1 unless `scaling = yarn`).
    """
    plain = config.theta ** (-np.arange(0, head_width, 2) / head_width)
    sharpness = 1.0
    if config.scaling == "linear":
        plain = plain / config.factor
    elif config.scaling == "llama3":
        plain = _mix(plain, config.factor, _llama3_share(config, plain))
    elif config.scaling == "yarn":
        plain = _mix(plain, config.factor, _yarn_share(config, head_width))
        sharpness = config.attention_factor or 0.1 * math.log(config.factor) + 1.0
    return plain.astype(np.float32), sharpness


def _mix(plain: np.ndarray, factor: float, share: np.ndarray) -> np.ndarray:
    """A `share` in [0, 1] of every frequency as it was, the rest divided by `factor`."""
    return share * plain + (1.0 - share) * plain / factor


def _llama3_share(config: RopeConfig, plain: np.ndarray) -> np.ndarray:
    """1 above `high_frequency` turns over the trained length, 0 below `low_frequency`, linear in between."""
    turns = config.original_length * plain / (2 * math.pi)
    return np.clip((turns - config.low_frequency) / (config.high_frequency - config.low_frequency), 0.0, 1.0)


def _yarn_share(config: RopeConfig, head_width: int) -> np.ndarray:
    """1 on pairs before the one with `beta_fast` turns, 0 after that with `beta_slow`, linear in the pair's number."""

    def pair(turns: float) -> float:
        return head_width * math.log(config.original_length / (turns * 2 * math.pi)) / (2 * math.log(config.theta))

    low = max(math.floor(pair(config.beta_fast)), 0)
    high = min(math.ceil(pair(config.beta_slow)), head_width - 1)
    ramp = (np.arange(head_width // 2) - low) / ((high - low) or 0.001)
    return 1.0 - np.clip(ramp, 0.0, 1.0)


def rotation(config: RopeConfig, head_width: int, positions: jax.Array) -> Rotation:
    """Angles of positions i32[B, Q]."""
    turn, sharpness = frequencies(config, head_width)
    angles = positions[..., None].astype(jnp.float32) * turn[None, None, :]
    return Rotation(jnp.cos(angles) * sharpness, jnp.sin(angles) * sharpness)


def rotate(x: jax.Array, by: Rotation) -> jax.Array:
    """Turn every pair (i, i + E/2) of `[B, N, Q, E]` by its position's angle, in float32."""
    cos, sin = by.cos[:, None], by.sin[:, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
