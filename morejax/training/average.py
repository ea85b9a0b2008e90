"""An exponential average of the trained parameters over the iterations of PPO."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from morejax.models.split import Params


def begin(params: Params) -> Params:
    """The average before the first iteration: a copy, since a step gives its state's buffers away."""
    return jax.tree.map(jnp.copy, params)


@partial(jax.jit, donate_argnums=0)
def follow(average: Params, params: Params, decay: float) -> Params:
    r"""One iteration more: \(\bar\theta \leftarrow d \bar\theta + (1 - d) \theta\), on the devices where they lie.

    Steps of PPO are noisy and their noise moves a policy as far as their mean does; averaged, what they have in
    common is left. After Polyak and Juditsky 1992, "Acceleration of stochastic approximation by averaging"; of
    fine-tuned language models Wortsman et al. 2022 (model soups) and Ramé et al. 2024 (WARP).

    Args:
        average: \(\bar\theta\), given away.
        params: \(\theta\) after the step.
        decay: \(d\) in [0, 1): about 1 / (1 - d) iterations count.
    """
    return jax.tree.map(lambda mean, new: decay * mean + (1 - decay) * new, average, params)
