"""The border between Flax modules and the plain pytrees that everything else computes on."""

from __future__ import annotations

from typing import Any

from flax import nnx

Params = dict[str, Any]


def split(model: nnx.Module) -> tuple[nnx.GraphDef, Params]:
    """Split a module into its static, hashable structure and a nested dict of arrays.

    Plain dicts keep the cost of a compiled call flat: `nnx.State` and `nnx.jit` walk the object graph in Python at
    every call, dicts are flattened in C.
    """
    graphdef, state = nnx.split(model, nnx.Param)
    return graphdef, nnx.to_pure_dict(state)


def merge(graphdef: nnx.GraphDef, params: Params) -> Any:
    """Rebuild the module from `split`'s parts; cheap, and traceable under any jax transform."""
    return nnx.merge(graphdef, params)
