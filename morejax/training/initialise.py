"""Structure and first parameters of a model, without building it array by array."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import jax
from flax import nnx

from morejax.models.split import Params, split

# XLA would join constant factors, which changes the last bit of what the constructor alone gives.
_CPU_OPTIONS = {"xla_disable_hlo_passes": "algsimp"}


def structure(build: Callable[[], nnx.Module]) -> tuple[nnx.GraphDef, Params]:
    """Graph and abstract parameters of a model; nothing is computed.

    Args:
        build: constructs the model.

    Returns:
        The graph, and `jax.ShapeDtypeStruct`s in place of arrays: what `load_params` needs to be told.
    """
    return split(nnx.eval_shape(build))


def initial_params(
    build: Callable[[], nnx.Module],
    parts: Collection[str] | None = None,
    shardings: Callable[[Params], Any] | None = None,
) -> Params:
    """First parameters of a model from one compiled program; on CPU bit-equal to those of `build()`.

    Args:
        build: constructs the model.
        parts: top-level entries to make, e.g. `value`; what they do not depend on is not computed. None makes all.
        shardings: of abstract parameters: where the arrays are made, so that no device holds a part it is not to keep.
    """

    def make() -> Params:
        params = split(build())[1]
        return {name: params[name] for name in (params if parts is None else parts)}

    where = None if shardings is None else shardings(jax.eval_shape(make))
    options = _CPU_OPTIONS if jax.default_backend() == "cpu" else None
    return jax.jit(make, out_shardings=where, compiler_options=options)()
