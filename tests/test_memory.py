"""A model that fits on no machine here is laid out and compiled without being made."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from morejax import memory
from morejax.models import DecoderConfig
from morejax.sharding import abstract_mesh, describe_layout, make_mesh, path_name, state_shardings

GOLDEN = Path(__file__).with_name("golden") / "layout_7b_on_64.txt"
FLAGS = memory.Flags(size="7B", devices=64)


@pytest.fixture(scope="module")
def state():
    return memory.abstract_state("7B")


def test_layout_of_the_large_model(state):
    """Kept as a file; `python -m morejax.memory --size 7B --devices 64 --layout` writes it anew."""
    assert describe_layout(abstract_mesh(*memory.mesh_shape(FLAGS)), state) == GOLDEN.read_text()


def test_the_command_writes_the_layout(capsys):
    memory.main(["--size", "7B", "--devices", "64", "--layout"])
    assert capsys.readouterr().out == GOLDEN.read_text()


def test_large_parameters_are_cut_over_32_devices_and_so_are_their_moments(state):
    """No array of more than a million numbers stays whole over fsdp or tensor, and moments lie as their parameters."""
    shardings = state_shardings(abstract_mesh(2, 8, 4), state)
    leaves = jax.tree_util.tree_leaves_with_path(state.params)
    for (path, leaf), where in zip(leaves, jax.tree.leaves(shardings.params), strict=True):
        cut = leaf.size // math.prod(where.shard_shape(leaf.shape))
        # Positions have no dimension for tensor; norms and biases of the residual stream are whole: 0.03 % of all.
        expected = {"trunk/positions": 8, "value/trunk/positions": 8}.get(path_name(path), 32)
        assert cut == expected or leaf.size <= 32 * 16384, path_name(path)
    assert jax.tree.leaves(shardings.opt_state.mu) == jax.tree.leaves(shardings.params)
    assert jax.tree.leaves(shardings.opt_state.nu) == jax.tree.leaves(shardings.params)
    rest = (shardings.multipliers, shardings.weights, shardings.hyper, shardings.key, shardings.opt_state.count)
    assert all(where.is_fully_replicated for where in jax.tree.leaves(rest))


def test_parameters_by_hand(state):
    """12 D^2 + 13 D in a block; V D and P D for both embeddings; 2 D of the last norm."""
    width, layers, vocab, positions = 4096, 32, 32000, 2048
    blocks = layers * (12 * width**2 + 13 * width)
    found = sum(leaf.size for leaf in jax.tree.leaves(state.params["trunk"]))
    assert found == blocks + (vocab + positions) * width + 2 * width


def test_account_of_a_step(core, monkeypatch):
    """XLA's figures of one device hold what the layout says: params, two moments and one quarter of the rollout."""
    tiny = DecoderConfig(vocab_size=64, max_length=16, layers=2, width=16, heads=2, scan=True, remat="full")
    monkeypatch.setitem(memory.SIZES, "7B", tiny)
    flags = replace(FLAGS, devices=8, fsdp=2, tensor=2, context=6, response=5)
    found = memory.account(flags, make_mesh(2, 2, 2), core.fast_compile())
    assert found.sequences == 16  # 4 on each of the 4 parts of data x fsdp
    # A sequence: 11 tokens, 4 bytes; masks 6 + 5; two log-probs and 14 stream numbers for each of 5; 7 applies.
    assert found.rollout == 4 * (11 * 4 + 11 + 5 * 4 * (2 + 14) + 7)
    assert found.optimizer == 2 * found.params + 4  # Adam's counter
    assert found.params + found.optimizer <= found.donated
    assert found.total > found.params + found.optimizer + found.rollout + found.temporary
    assert found.temporary > found.params
    text = memory.table(found)
    assert f"on data=2 x fsdp=2 x tensor=2, 16 sequences of 11 tokens in {memory.STEP.minibatches} minibatches" in text
    assert json.loads(json.dumps(memory.asdict(found)))["mesh"] == [2, 2, 2]


def test_devices_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="--devices 48 is not a multiple of --fsdp 5 x --tensor 4"):
        memory.mesh_shape(replace(FLAGS, devices=48, fsdp=5))


def test_default_meshes():
    assert memory.mesh_shape(FLAGS) == (2, 8, 4)
    assert memory.mesh_shape(memory.Flags()) == (8, 1, 1)
