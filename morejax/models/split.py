"""The border between Flax modules and the plain pytrees that everything else computes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx, struct

Params = dict[str, Any]


class Bound(struct.PyTreeNode):
    """A model's structure with the part of its parameters that is not trained (LoRA's base).

    Wherever a structure is taken, this may stand in its place: `merge` then asks for the trained parameters only. As a
    pytree it has the frozen arrays for leaves, so it can be an argument of a compiled function.
    """

    graphdef: nnx.GraphDef = struct.field(pytree_node=False)
    frozen: Params


def split(model: nnx.Module) -> tuple[nnx.GraphDef, Params]:
    """Split a module into its static, hashable structure and a nested dict of arrays.

    Plain dicts keep the cost of a compiled call flat: `nnx.State` and `nnx.jit` walk the object graph in Python at
    every call, dicts are flattened in C.
    """
    graphdef, state = nnx.split(model, nnx.Param)
    return graphdef, nnx.to_pure_dict(state)


def merge(graphdef: nnx.GraphDef | Bound, params: Params) -> Any:
    """Rebuild the module from `split`'s parts; cheap, and traceable under any jax transform."""
    if isinstance(graphdef, Bound):
        return nnx.merge(graphdef.graphdef, whole(graphdef, params))
    return nnx.merge(graphdef, params)


def whole(graphdef: nnx.GraphDef | Bound, params: Params) -> Params:
    """All parameters of a model: the trained ones, and the frozen ones that are bound to its structure.

    A critic with adapters of its own has them on the policy's weights, those included that are trained as they are.
    """
    if not isinstance(graphdef, Bound):
        return params
    joined = _joined(graphdef.frozen, params)
    # A trunk of another make brings all of its parameters, its embedding among them.
    if "embedding" in params.get("value", {}).get("trunk", {"embedding": None}):
        return joined
    return _joined({"value": {"trunk": _without_adapters(joined["trunk"])}}, joined)


def _joined(first: Params, second: Params) -> Params:
    """Nested dicts put together; where both have an array, the second's."""
    joined = dict(first)
    for name, part in second.items():
        both = isinstance(part, dict) and isinstance(joined.get(name), dict)
        joined[name] = _joined(joined[name], part) if both else part
    return joined


def _without_adapters(params: Params) -> Params:
    kept = {name: part for name, part in params.items() if name not in ("lora_a", "lora_b")}
    return {name: _without_adapters(part) if isinstance(part, dict) else part for name, part in kept.items()}


def flatten(params: Params) -> dict[str, Any]:
    """`{"trunk/final_norm/scale": leaf}` of nested dicts."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(key.key for key in path): leaf for path, leaf in leaves}


def unflatten(leaves: Mapping[str, Any]) -> Params:
    """Nested dicts of `{"trunk/final_norm/scale": leaf}`."""
    params: Params = {}
    for name, leaf in leaves.items():
        *parents, last = name.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return params
