"""Where a run's arrays lie: on one device, or on a mesh by the rules of `morejax.sharding`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from morejax import hosts
from morejax.rollout import Sample
from morejax.sharding import params_shardings, rollout_sharding, row_shards, state_shardings


class Placement:
    """Shardings of parameters, states and rows, and how arrays get there.

    Args:
        mesh: of all processes' devices; None keeps everything on the first device.
    """

    def __init__(self, mesh: Mesh | None = None):
        self.mesh = mesh

    @property
    def devices(self) -> int:
        """Devices in use, those of all processes."""
        return 1 if self.mesh is None else self.mesh.size

    @property
    def row_shards(self) -> int:
        """Parts that the rows of a batch are cut into: their number is a multiple of it."""
        return 1 if self.mesh is None else row_shards(self.mesh)

    def whole_rows(self, count: int) -> int:
        """The smallest number of rows that is not below `count` and can be cut."""
        return -(-count // self.row_shards) * self.row_shards

    def of_params(self, params: Any) -> Any:
        """A sharding for every parameter, real or abstract, named as in a model (`trunk/...`, `reward/...`)."""
        return self._by_rule(params_shardings, params)

    def of_state(self, state: Any) -> Any:
        """A sharding for every leaf of a state that has `params` and `opt_state`."""
        return self._by_rule(state_shardings, state)

    def _by_rule(self, rule: Callable[[Mesh, Any], Any], tree: Any) -> Any:
        if self.mesh is None:
            return jax.tree.map(lambda _: self.replicated, tree)
        return rule(self.mesh, tree)

    @property
    def replicated(self) -> Sharding:
        """On every device."""
        if self.mesh is None:
            return SingleDeviceSharding(jax.devices()[0])
        return NamedSharding(self.mesh, PartitionSpec())

    def state(self, state: Any) -> Any:
        """Place a state; every leaf, since one that jit is free to move costs a second compilation."""
        return hosts.place_global(state, self.of_state(state))

    def rows(self, tree: Any) -> Any:
        """Place rows that every process holds whole, or that lie on the mesh already, cut over the devices."""
        return tree if self.mesh is None else hosts.place_global(tree, rollout_sharding(self.mesh))

    def sampler(self, sample: Callable[..., Sample]) -> Callable[..., Sample]:
        """A sampler of `(params, prompts, mask, key)` that takes host arrays; its rows lie cut over the devices."""
        if self.mesh is None:
            return sample

        def placed(params: Any, prompts: Any, mask: Any, key: jax.Array) -> Sample:
            key = hosts.place_global(key, self.replicated)
            return self.rows(sample(params, *self.rows((prompts, mask)), key))

        return placed


ONE_DEVICE = Placement()
