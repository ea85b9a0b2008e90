"""A model put at a temperature: its distribution at 1 is the other's at that temperature."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from morejax.models import merge, split
from morejax.models.temperature import at_temperature


@pytest.mark.parametrize(
    "shape",
    [{}, {"tied": False}, {"norm": "rms", "positions": "rope", "tied": False}],
    ids=["tied", "untied", "rms"],
)
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_logits_are_divided(core, shape, temperature):
    graphdef, params = split(core.model(**shape))
    tokens, mask = core.rollout().tokens, core.rollout().mask

    def logits(params):
        model = merge(graphdef, params)
        return np.asarray(model.logits(model.hidden(tokens, mask)))

    wanted = logits(params) / temperature
    np.testing.assert_allclose(logits(at_temperature(params, temperature)), wanted, rtol=1e-5, atol=1e-5)


def test_nothing_else_is_copied(core):
    params = split(core.model())[1]
    cold = at_temperature(params, 0.5)
    same = jax.tree.map(lambda a, b: a is b, params, cold)
    assert not any(jax.tree.leaves(same["trunk"].pop("final_norm")))
    assert all(jax.tree.leaves(same))
    assert at_temperature(params, 1.0) is params


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_it_is_above_zero(core, temperature):
    with pytest.raises(ValueError, match="temperature must be above 0"):
        at_temperature(split(core.model())[1], temperature)
