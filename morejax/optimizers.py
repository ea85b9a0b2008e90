"""Optimizers by name, as optax transformations whose updates the step multiplies by minus its (traced) rates.

name        arrays a parameter has beside itself, bytes at float32
adam        both moments, 8; with weight decay this is AdamW
adam_bf16   the first moment in bfloat16, 6
lion        a moment of signs in bfloat16, 2                             [arXiv 2302.06675]
adafactor   means of rows and columns of the squared gradient, near 0   [arXiv 1804.04235]
sgd         a momentum, 4
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Literal

import jax.numpy as jnp
import optax

Name = Literal["adam", "adam_bf16", "lion", "adafactor", "sgd"]

_RULES: dict[str, Callable[[], optax.GradientTransformation]] = {
    "adam": lambda: optax.scale_by_adam(b1=0.9, b2=0.98, eps=1e-6),
    "adam_bf16": lambda: optax.scale_by_adam(b1=0.9, b2=0.98, eps=1e-6, mu_dtype=jnp.bfloat16),
    "lion": lambda: optax.scale_by_lion(b1=0.9, b2=0.99, mu_dtype=jnp.bfloat16),
    # Updates of root mean square 1 at most, as the paper clips them, so that rates mean the same as Adam's.
    "adafactor": lambda: optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)),
    "sgd": lambda: optax.trace(decay=0.9),
}
OPTIMIZERS = tuple(_RULES)


@cache
def optimizer(name: str = "adam", weight_decay: float = 0.0) -> optax.GradientTransformation:
    """One object for each name and decay: it is a part of a state's static structure, another would be compiled anew.

    Args:
      name: of `OPTIMIZERS`.
      weight_decay: adds `weight_decay * parameter` to the update, decoupled from the gradient (AdamW,
        arXiv 1711.05101).

    Raises:
      ValueError: an unknown name, or a negative decay.
    """
    if name not in _RULES:
        raise ValueError(f"--optimizer must be one of {', '.join(_RULES)}, not {name!r}")
    if weight_decay < 0:
        raise ValueError(f"--weight-decay must not be negative: {weight_decay}")
    rule = _RULES[name]()
    return optax.chain(rule, optax.add_decayed_weights(weight_decay)) if weight_decay else rule
