"""Dropout of what is written into the residual stream [Srivastava et al., JMLR 15, 2014]: for supervised learning."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Dropout(NamedTuple):
    """One draw of noise for one pass of a decoder; the same key gives the same noise.

    Passed to a pass as an argument rather than kept in the model: PPO, evaluation and generation have none, and no
    state of a random generator has to be split off, donated or saved.
    """

    key: jax.Array
    """PRNG key; every place that drops folds its number into it."""
    rate: float
    """Probability with which an entry is set to 0, in [0, 1); the others are divided by 1 - rate."""

    def at(self, place: jax.Array | int) -> Dropout:
        """The draw of a layer, or of one of a layer's outputs."""
        return self._replace(key=jax.random.fold_in(self.key, place))

    def __call__(self, x: jax.Array) -> jax.Array:
        """x with entries dropped; its mean over draws is x."""
        kept = jax.random.bernoulli(self.key, 1 - self.rate, x.shape)
        return jnp.where(kept, x / (1 - self.rate), jnp.zeros_like(x))


def dropped(x: jax.Array, dropout: Dropout | None, place: int) -> jax.Array:
    """`dropout.at(place)(x)`; x itself without dropout."""
    return x if dropout is None else dropout.at(place)(x)
