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
    (r"(attention/qkv|up|gate)/kernel$", ("fsdp", "tensor")),
    (r"(attention/out|down)/kernel$", ("tensor", "fsdp")),
    (r"lora_a$", ("fsdp", None)),
    (r"lora_b$", (None, "tensor")),
    (r"(head/inner|reward/inner)/kernel$", ("fsdp", None)),
    (r"(head/outer|reward/outer)/kernel$", (None, None)),
    (r"(attention/qkv|up|gate)/bias$", ("tensor",)),
    (r"(attention/out|down|head/inner|head/outer|reward/inner|reward/outer)/bias$", (None,)),
    (r"(norm[12]?/(scale|bias)|shift)$", (None,)),
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


def parse_mesh(text: str) -> dict[str, int]:
    """Axis sizes of a mesh from `data=8,fsdp=4,tensor=2`.

    Args:
      text: axes in any order; those left out have size 1, and one may be -1: the rest of the devices.

    Returns:
      {"data": ..., "fsdp": ..., "tensor": ...}.

    Raises:
      ValueError: an unknown or repeated axis, a size that is not a whole number from 1 (or -1), or several of -1.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, equals, size = (piece.strip() for piece in part.partition("="))
        if not equals or axis not in AXES:
            raise ValueError(f"--mesh {text}: {part.strip()!r} is not AXIS=SIZE with an axis among {', '.join(AXES)}")
        if axis in sizes:
            raise ValueError(f"--mesh {text}: {axis} is given twice")
        if size != "-1" and not (size.isdecimal() and int(size) > 0):
            raise ValueError(f"--mesh {text}: the size of {axis} must be 1 or more, or -1 for the rest, not {size!r}")
        sizes[axis] = int(size)
    if list(sizes.values()).count(-1) > 1:
        raise ValueError(f"--mesh {text}: only one axis can be -1, the rest of the devices")
    return {axis: sizes.get(axis, 1) for axis in AXES}


def mesh_from_text(text: str, devices: list | None = None) -> Mesh:
    """The mesh that `parse_mesh` reads, over all devices.

    Raises:
      ValueError: as `parse_mesh`, or the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = parse_mesh(text)
    given = math.prod(size for size in sizes.values() if size != -1)
    rest = len(devices) // given if -1 in sizes.values() else 1
    sizes = {axis: rest if size == -1 else size for axis, size in sizes.items()}
    if given * rest != len(devices):
        raise ValueError(
            f"--mesh {text}: its sizes multiply to {given}, found {len(devices)} {devices[0].platform} device(s) in "
            f"{jax.process_count()} process(es)"
        )
    return make_mesh(**sizes, devices=devices)


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
    """A NamedSharding for every leaf of a `TrainState`: parameters and their moments by rule, the rest replicated.

    An optimizer's array that is not of its parameter's shape (the row and column means of adafactor) is small, and
    replicated too.
    """
    shapes = {path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)}

    def place(path, leaf):
        name = path_name(path)
        root, _, rest = name.partition("/")
        if root == "opt_state":
            parts = rest.split("/")
            found = ["/".join(parts[start:]) for start in range(len(parts))]
            by_rule = any(shapes.get(part) == leaf.shape for part in found)
        else:
            by_rule = root in ("params", "frozen")
        return NamedSharding(mesh, parameter_spec(name, leaf.shape, mesh) if by_rule else PartitionSpec())

    return jax.tree_util.tree_map_with_path(place, state)


def rollout_sharding(mesh: AnyMesh) -> NamedSharding:
    """Sequences are cut along data and fsdp together."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def row_shards(mesh: AnyMesh) -> int:
    """Into how many parts sequences are cut."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def describe_layout(mesh: AnyMesh, state: Any) -> str:
    """A table of a state's layout: name, shape, mesh axes and bytes on each device of every parameter.

    Both Adam moments lie as their parameters do, so the last lines sum up the optimizer and everything else.

    Args:
      mesh: real or abstract.
      state: a `TrainState`, real or abstract.
    """
    shardings = state_shardings(mesh, state)
    rows = [("mesh", " x ".join(f"{axis}={size}" for axis, size in mesh.shape.items()), "", "bytes per device")]
    leaves = jax.tree_util.tree_leaves_with_path((state.params, state.frozen))
    for ((_, *path), leaf), where in zip(leaves, jax.tree.leaves((shardings.params, shardings.frozen)), strict=True):
        axes = ", ".join(map(str, where.spec))
        rows.append((path_name(tuple(path)), f"{leaf.dtype}{list(leaf.shape)}", axes, f"{shard_bytes(leaf, where):,}"))
    parts = {name: (getattr(state, name), getattr(shardings, name)) for name in ("params", "frozen", "opt_state")}
    totals = {name: tree_bytes(*part) for name, part in parts.items() if part[0] is not None}
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
