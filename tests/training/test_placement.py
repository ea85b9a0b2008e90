"""Where a run's arrays lie, without a mesh and on one."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from morejax.models import CriticConfig, split
from morejax.rollout import Sample
from morejax.sharding import make_mesh, rollout_sharding
from morejax.training.initialise import initial_params
from morejax.training.placement import ONE_DEVICE, Placement


@pytest.fixture
def placement():
    return Placement(make_mesh(2, 2, 2))


def test_without_a_mesh_everything_is_on_the_first_device(core):
    state = core.state(core.config())
    assert (ONE_DEVICE.devices, ONE_DEVICE.row_shards, ONE_DEVICE.whole_rows(7)) == (1, 1, 7)
    placed = ONE_DEVICE.state(jax.device_put(state, jax.devices()[3]))
    assert {device for leaf in jax.tree.leaves(placed) for device in leaf.devices()} == {jax.devices()[0]}
    rows = np.arange(6)
    assert ONE_DEVICE.rows(rows) is rows
    assert ONE_DEVICE.sampler(len) is len


def test_rows_are_rounded_up_to_what_can_be_cut(placement):
    assert (placement.devices, placement.row_shards) == (8, 4)
    assert [placement.whole_rows(count) for count in (1, 4, 5, 128)] == [4, 4, 8, 128]
    rows = placement.rows({"tokens": np.arange(8), "mask": np.ones((8, 3), bool)})
    assert {shard.data.shape for shard in rows["mask"].addressable_shards} == {(2, 3)}


def test_a_state_lies_by_the_rules_and_new_parameters_are_made_there(core, placement):
    def build():
        return core.model(critic=CriticConfig(kind="shared", hidden=8))

    params = initial_params(build, shardings=placement.of_params)
    assert params["trunk"]["embedding"].sharding.spec == PartitionSpec("tensor", "fsdp")
    assert params["value"]["head"]["inner"]["kernel"].sharding.spec == PartitionSpec("fsdp", None)
    for made, expected in zip(jax.tree.leaves(params), jax.tree.leaves(split(build())[1]), strict=True):
        np.testing.assert_array_equal(made, expected)
    state = placement.state(core.state(core.config()))
    up = state.opt_state.mu["trunk"]["blocks"]["up"]["kernel"]
    assert up.addressable_shards[0].data.shape == (2, 8, 32)
    assert state.score_ema.sharding.is_fully_replicated


def test_a_sampler_gets_rows_and_gives_rows(placement):
    seen = []

    def sample(params, prompts, mask, key):
        seen.extend((prompts.sharding, mask.sharding))
        assert key.sharding.is_fully_replicated
        return Sample(prompts[:, :2] + params, mask[:, :2], prompts[:, :2].astype(np.float32))

    out = placement.sampler(sample)(1, np.zeros((8, 3), np.int32), np.ones((8, 3), bool), jax.random.key(0))
    rows = rollout_sharding(placement.mesh)
    assert all(where.is_equivalent_to(rows, 2) for where in (*seen, out.tokens.sharding, out.logp.sharding))
    assert out.values is None
