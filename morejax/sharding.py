"""Where every array lives: a `(data, fsdp, tensor)` mesh and one table from parameter path to mesh axes."""

from __future__ import annotations

import math
import re
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")
AnyMesh = Mesh | AbstractMesh

# Path (joined by "/") -> mesh axes of its last dimensions. Optimizer moments end in their parameter's path, so the
# same table places them. Leading axes not named (the stacked layers) stay whole.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"(embedding|policy/kernel)$", ("tensor", "fsdp")),
    (r"positions$", (None, "fsdp")),
    (r"(attention/qkv|up)/kernel$", ("fsdp", "tensor")),
    (r"(attention/out|down)/kernel$", ("tensor", "fsdp")),
    (r"(head/inner|reward/inner)/kernel$", ("fsdp", None)),
    (r"(head/outer|reward/outer)/kernel$", (None, None)),
    (r"(attention/qkv|up)/bias$", ("tensor",)),
    (r"(attention/out|down|head/inner|head/outer|reward/inner|reward/outer)/bias$", (None,)),
    (r"norm[12]?/(scale|bias)$", (None,)),
)


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1, devices: list | None = None) -> Mesh:
    """A mesh over `data x fsdp x tensor` devices.

    Raises:
      ValueError: there are not exactly that many devices; never a smaller mesh in silence.
    """
    devices = jax.devices() if devices is None else devices
    if data * fsdp * tensor != len(devices):
        raise ValueError(
            f"a mesh data={data} x fsdp={fsdp} x tensor={tensor} needs {data * fsdp * tensor} devices, found "
            f"{len(devices)} ({devices[0].platform})"
        )
    return jax.make_mesh((data, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def abstract_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1) -> AbstractMesh:
    """The same mesh without devices: enough to lay arrays out, for a machine that is not this one."""
    return AbstractMesh((data, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * 3)


def path_name(path: tuple) -> str:
    """`trunk/blocks/up/kernel` of a key path."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def parameter_spec(name: str, shape: tuple[int, ...], mesh: AnyMesh) -> PartitionSpec:
    """Mesh axes of one parameter.

    A dimension that its mesh axis does not divide stays whole (a vocabulary of 1000 on 3 devices).

    Raises:
      ValueError: no rule matches the path, or more than one does.
    """
    matches = [axes for pattern, axes in RULES if re.search(pattern, name)]
    if len(matches) != 1:
        raise ValueError(f"parameter {name!r} matches {len(matches)} sharding rules, expected exactly one")
    axes = (None,) * (len(shape) - len(matches[0])) + matches[0]
    return PartitionSpec(
        *(axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in zip(axes, shape, strict=True))
    )


def params_shardings(mesh: AnyMesh, params: Any) -> Any:
    """A NamedSharding for every parameter."""

    def place(path, leaf):
        return NamedSharding(mesh, parameter_spec(path_name(path), leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(place, params)


def state_shardings(mesh: AnyMesh, state: Any) -> Any:
    """A NamedSharding for every leaf of a `TrainState`: parameters and their moments by rule, the rest replicated."""

    def place(path, leaf):
        name = path_name(path)
        parts = name.split("/")
        is_parameter = parts[0] == "params" or (parts[0] == "opt_state" and {"trunk", "value", "policy"} & set(parts))
        spec = parameter_spec(name, leaf.shape, mesh) if is_parameter else PartitionSpec()
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(place, state)


def rollout_sharding(mesh: AnyMesh) -> NamedSharding:
    """Sequences are cut along data and fsdp together."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def describe_layout(mesh: AnyMesh, state: Any) -> str:
    """A table of a state's layout: name, shape, mesh axes and bytes on each device of every parameter.

    Both Adam moments lie as their parameters do, so the last lines sum up the optimizer and everything else.

    Args:
      mesh: real or abstract.
      state: a `TrainState`, real or abstract.
    """
    shardings = state_shardings(mesh, state)
    rows = [("mesh", " x ".join(f"{axis}={size}" for axis, size in mesh.shape.items()), "", "bytes per device")]
    leaves = jax.tree_util.tree_leaves_with_path(state.params)
    for (path, leaf), where in zip(leaves, jax.tree.leaves(shardings.params), strict=True):
        axes = ", ".join(map(str, where.spec))
        rows.append((path_name(path), f"{leaf.dtype}{list(leaf.shape)}", axes, f"{shard_bytes(leaf, where):,}"))
    parts = {name: (getattr(state, name), getattr(shardings, name)) for name in ("params", "opt_state")}
    totals = {name: tree_bytes(*part) for name, part in parts.items()}
    rows += [(f"all of {name}", "", "", f"{total:,}") for name, total in totals.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join([*map(str.ljust, row[:3], widths), row[3].rjust(widths[3])]) for row in rows]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def shard_bytes(leaf: Any, sharding: NamedSharding) -> int:
    """Bytes of an array (real or abstract) on one device."""
    return math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def tree_bytes(tree: Any, shardings: Any) -> int:
    """Bytes of a tree on one device."""
    return sum(jax.tree.leaves(jax.tree.map(shard_bytes, tree, shardings)))
