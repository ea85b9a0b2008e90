"""Optimizers by name, as optax transformations whose updates the step multiplies by minus its (traced) rates.

name        arrays a parameter has beside itself, bytes at float32
adam        both moments, 8; with weight decay this is AdamW
adam_bf16   the first moment in bfloat16, 6
lion        a moment of signs in bfloat16, 2                             [arXiv 2302.06675]
adafactor   means of rows and columns of the squared gradient, near 0   [arXiv 1804.04235]
muon        of a matrix a momentum, 4, of the rest Adam's moments, 8    [arXiv 2502.16982]
sgd         a momentum, 4
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

Name = Literal["adam", "adam_bf16", "lion", "adafactor", "muon", "sgd"]

# Layers whose results are logits, values or rewards.
_LAST = ("policy", "outer")


def kernels(params: Any) -> Any:
    """Which parameters are matrices of linear layers: a bool each, true for those called `kernel`, f[..., in, out]."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.ndim > 1 and "kernel" in jax.tree_util.keystr(path[-1:]), params
    )


def _muon() -> optax.GradientTransformation:
    """Kernels between layers move along the orthogonalised momentum, all else as under NAdam.

    All else is embeddings, the last layers of heads, norms, biases and adapters: Muon is made for matrices between
    hidden states. Updates of kernels have a root mean square of 0.5, so that the rate that suits Adam suits both. (At
    0.2, the size of Adam's own updates, small models learn from scratch more slowly; at 1 no faster.)
    """

    def matrix(path: tuple, leaf: jax.Array, kernel: bool) -> optax.contrib.MuonDimensionNumbers | None:
        if not kernel or any(name in jax.tree_util.keystr(path) for name in _LAST):
            return None
        # The last two axes; those before count layers, each of which is orthogonalised by itself.
        return optax.contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1)

    def matrices(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(matrix, params, kernels(params))

    descent = optax.contrib.muon(
        1.0, adam_b1=0.9, adam_b2=0.98, consistent_rms=0.5, muon_weight_dimension_numbers=matrices
    )
    # Its updates are to be added; those of the other rules, before the rate, are to be taken off.
    return optax.chain(descent, optax.scale(-1.0))


_RULES: dict[str, Callable[[], optax.GradientTransformation]] = {
    "adam": lambda: optax.scale_by_adam(b1=0.9, b2=0.98, eps=1e-6),
    "adam_bf16": lambda: optax.scale_by_adam(b1=0.9, b2=0.98, eps=1e-6, mu_dtype=jnp.bfloat16),
    "lion": lambda: optax.scale_by_lion(b1=0.9, b2=0.99, mu_dtype=jnp.bfloat16),
    # Updates of root mean square 1 at most, as the paper clips them, so that rates mean the same as Adam's.
    "adafactor": lambda: optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)),
    "muon": _muon,
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
