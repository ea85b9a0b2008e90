"""A model whose softmax at temperature 1 is another one's at temperature t."""

from __future__ import annotations

import jax

from morejax.models.split import Params


def at_temperature(params: Params, temperature: float) -> Params:
    """Parameters whose logits are those of `params` divided by the temperature.

    A head without bias is linear in the final norm's output, and that in the norm's scale and bias: those are divided,
    every other leaf is the same array. Sampling from the result at temperature 1 is sampling from `params` at
    `temperature`, greedy replies are the same, and whatever trains the result trains the distribution that is sampled
    from. A head of values that reads the same hidden states sees them scaled too.

    Args:
        params: of a decoder (`trunk` with `final_norm`), with or without a critic.
        temperature: above 0; below 1 makes the distribution sharper.

    Raises:
        ValueError: a temperature that is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, not {temperature}")
    if temperature == 1:
        return params
    trunk = dict(params["trunk"])
    trunk["final_norm"] = jax.tree.map(lambda leaf: (leaf / temperature).astype(leaf.dtype), trunk["final_norm"])
    return params | {"trunk": trunk}
