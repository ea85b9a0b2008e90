"""The mean of the trained parameters over the last iterations of PPO, of one run or of several."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from morejax.models.split import Params


def begin(params: Params) -> Params:
    """The mean before the first iteration: a copy, since a step gives its state's buffers away."""
    return jax.tree.map(jnp.copy, params)


def weight(iteration: int, iterations: int, share: float) -> float:
    """What the parameters after an iteration count for: 1 / k, where they are the k-th of those that are averaged.

    Args:
        iteration: from 1, counted through all runs.
        iterations: of one run.
        share: of them, the last ones, that are averaged; at least one is. Before those the mean is the policy itself in
            the first run, and what it was in later ones.
    """
    run, place = divmod(iteration - 1, iterations)
    averaged = max(1, round(share * iterations))
    place += 1 - (iterations - averaged)
    if place <= 0:
        return 0.0 if run else 1.0
    return 1 / (run * averaged + place)


@partial(jax.jit, donate_argnums=0)
def follow(mean: Params, params: Params, weight: float) -> Params:
    r"""One iteration more: \(\bar\theta \leftarrow (1 - w) \bar\theta + w \theta\), on the devices where they lie.

    With w = 1 / k this is the mean of k iterations. Steps of PPO are noisy, and their noise moves a policy about as
    far as their mean does; averaged, what they have in common is left. After Polyak and Juditsky 1992, "Acceleration of
    stochastic approximation by averaging", of the last part only as Rakhlin et al. 2012 (arXiv 1109.5647, suffix
    averaging); of fine-tuned language models Wortsman et al. 2022 (arXiv 2203.05482, model soups).

    Args:
        mean: \(\bar\theta\), given away.
        params: \(\theta\) after the step.
        weight: \(w\) in [0, 1], from `weight`.
    """
    return jax.tree.map(lambda old, new: (1 - weight) * old + weight * new, mean, params)
