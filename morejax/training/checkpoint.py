"""Checkpoints of a stage: arrays and a small JSON, written by Orbax in the background.

Of several processes each writes and reads the parts of arrays that lie on its devices, into one folder that all see;
every function here is called by all of them. Arrays are read onto whatever mesh they are wanted on.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from morejax import hosts


class Checkpoints:
    """The checkpoints of one stage, `<directory>/<step>/{state,meta}`.

    Args:
        directory: folder of the stage.
        keep: how many of the newest to keep.
    """

    def __init__(self, directory: Path | str, keep: int = 2):
        self.directory = Path(directory).absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint that the main process sees, or None."""
        return hosts.on_main(self._manager.latest_step)

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Write a pytree of arrays and a JSON; returns once the arrays are copied. Saving a step again is a no-op."""
        if step == self._manager.latest_step():
            return
        # The JSON is written in the background: a copy, since the caller goes on changing its own.
        frozen = json.loads(json.dumps(meta))
        written = ocp.args.StandardSave(_without_empty(state))
        self._manager.save(step, args=ocp.args.Composite(state=written, meta=ocp.args.JsonSave(frozen)))

    def restore(self, like: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Read a checkpoint back.

        Args:
            like: pytree of arrays (or of ShapeDtypeStructs with shardings) of the wanted structure and placement.
            step: which one; the newest by default.

        Raises:
            FileNotFoundError: there is none.
            ValueError: its structure or shapes are not those of `like`.
        """
        step = self.latest() if step is None else step
        if step is None:
            raise FileNotFoundError(f"{self.directory}: no checkpoint here")
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _without_empty(like))
        arguments = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), meta=ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=arguments)
        except (ValueError, KeyError) as error:
            raise _misfit(f"{self.directory}/{step}: the checkpoint does", error) from error
        state = jax.tree.map(
            lambda read, own: own if read is None else read, restored["state"], like, is_leaf=lambda leaf: leaf is None
        )
        return state, restored["meta"]

    def close(self) -> None:
        """Wait for pending writes."""
        self._manager.wait_until_finished()
        self._manager.close()


def save_params(directory: Path | str, params: Any, meta: dict[str, Any]) -> None:
    """Write final parameters `directory/params` with a JSON beside them, complete or not at all."""
    directory = Path(directory).absolute()
    hosts.on_main(lambda: directory.mkdir(parents=True, exist_ok=True))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory / "params", params, force=True)
    hosts.on_main(lambda: _write_meta(directory, meta))


def _write_meta(directory: Path, meta: dict[str, Any]) -> None:
    (directory / "meta.json.part").write_text(json.dumps(meta, indent=1))
    (directory / "meta.json.part").rename(directory / "meta.json")


def _read_meta(directory: Path) -> dict[str, Any]:
    if not (directory / "meta.json").is_file():
        raise FileNotFoundError(f"{directory}: no finished parameters here; run the stage that makes them first")
    return json.loads((directory / "meta.json").read_text())


def load_params(directory: Path | str, like: Any, sharding: Any = None) -> tuple[Any, dict[str, Any]]:
    """Read what `save_params` wrote.

    Args:
        directory: where it is.
        like: pytree of arrays or of ShapeDtypeStructs, of the wanted structure.
        sharding: where to put the arrays, one for all or a tree of them; on the first device when None.

    Raises:
        FileNotFoundError: nothing is there, or it is incomplete.
        ValueError: structure or shapes are not those of `like`.
    """
    directory = Path(directory).absolute()
    meta = hosts.on_main(lambda: _read_meta(directory))
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    if isinstance(sharding, jax.sharding.Sharding):
        sharding = jax.tree.map(lambda _: sharding, like)
    abstract = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), like, sharding
    )
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            params = checkpointer.restore(directory / "params", abstract)
        except (ValueError, KeyError) as error:
            raise _misfit(f"{directory}: the parameters do", error) from error
    return params, meta


def _without_empty(tree: Any) -> Any:
    # Orbax does not write arrays without elements, which a step without constraints has.
    return jax.tree.map(lambda leaf: leaf if leaf.size else None, tree)


def _misfit(what: str, error: Exception) -> ValueError:
    # Orbax explains over many lines; a user's error is one.
    reason = textwrap.shorten(str(error), 400)
    return ValueError(f"{what} not fit this configuration (was the model or the step changed since?): {reason}")
