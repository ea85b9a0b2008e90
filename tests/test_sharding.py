"""One rule for every parameter; moments lie where their parameters lie; a mesh of exactly the devices there are."""

from __future__ import annotations

import re

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from morejax.models import CriticConfig, LoraConfig, RewardHead, split
from morejax.rollout import SamplerConfig, compile_sampler
from morejax.sharding import (
    RULES,
    make_mesh,
    mesh_from_text,
    parameter_spec,
    params_shardings,
    parse_mesh,
    path_name,
    rollout_sharding,
    row_shards,
    state_shardings,
)
from morejax.state import init_state

GOLDEN = """
trunk/blocks/attention/out/bias    (2, 16)      None, None
trunk/blocks/attention/out/kernel  (2, 16, 16)  None, tensor, fsdp
trunk/blocks/attention/qkv/bias    (2, 48)      None, tensor
trunk/blocks/attention/qkv/kernel  (2, 16, 48)  None, fsdp, tensor
trunk/blocks/down/bias             (2, 16)      None, None
trunk/blocks/down/kernel           (2, 64, 16)  None, tensor, fsdp
trunk/blocks/norm1/bias            (2, 16)      None, None
trunk/blocks/norm1/scale           (2, 16)      None, None
trunk/blocks/norm2/bias            (2, 16)      None, None
trunk/blocks/norm2/scale           (2, 16)      None, None
trunk/blocks/up/bias               (2, 64)      None, tensor
trunk/blocks/up/kernel             (2, 16, 64)  None, fsdp, tensor
trunk/embedding                    (64, 16)     tensor, fsdp
trunk/final_norm/bias              (16,)        None
trunk/final_norm/scale             (16,)        None
trunk/positions                    (32, 16)     None, fsdp
value/head/inner/bias              (8,)         None
value/head/inner/kernel            (16, 8)      fsdp, None
value/head/outer/bias              (5,)         None
value/head/outer/kernel            (8, 5)       None, None
"""


def abstract_params(core, **changes):
    return split(core.model(**changes))[1]


def named(params):
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def test_layout_of_the_small_model(core):
    """On (2, 2, 2): stacked layers whole, matrices cut along fsdp and tensor, vectors of the residual stream whole."""
    params = abstract_params(core, critic=CriticConfig(kind="shared", hidden=8))
    specs = named(params_shardings(make_mesh(2, 2, 2), params))
    rows = [(name, str(leaf.shape), ", ".join(map(str, specs[name].spec))) for name, leaf in named(params).items()]
    assert [" ".join(row) for row in rows] == [re.sub(" {2,}", " ", row) for row in GOLDEN.strip().splitlines()]


def all_parameters(core):
    """Every parameter name of the models there are: tied and untied, both critics, a reward head."""
    reward = split(nnx.eval_shape(lambda: RewardHead(8, hidden=4, rngs=nnx.Rngs(0))))[1]
    models = [
        abstract_params(core),
        abstract_params(core, tied=False),
        abstract_params(core, critic=CriticConfig(kind="shared")),
        abstract_params(core, lora=LoraConfig(rank=2), mlp="swiglu", critic=CriticConfig(kind="base")),
        {"reward": reward},
    ]
    return sorted({name for params in models for name in named(params)})


def test_each_parameter_matches_exactly_one_rule(core):
    names = all_parameters(core)
    assert "policy/kernel" in names
    assert "value/trunk/blocks/up/kernel" in names
    for name in names:
        assert sum(bool(re.search(pattern, name)) for pattern, _ in RULES) == 1, name


def test_each_rule_places_some_parameter(core):
    names = all_parameters(core)
    for pattern, _ in RULES:
        assert any(re.search(pattern, name) for name in names), pattern


def test_a_parameter_without_a_rule_is_an_error():
    with pytest.raises(ValueError, match="'trunk/router/kernel' matches 0 sharding rules, expected exactly one"):
        parameter_spec("trunk/router/kernel", (4, 4), make_mesh(8))


def test_a_dimension_that_does_not_divide_stays_whole():
    """A vocabulary of 65 rows is not cut in two, its 16 columns are."""
    mesh = make_mesh(2, 2, 2)
    assert parameter_spec("trunk/embedding", (65, 16), mesh) == PartitionSpec(None, "fsdp")


def test_the_state_lies_as_its_rules_say(core):
    """Made in place under `out_shardings`: parameters and both Adam moments cut, everything else on every device."""
    mesh, config = make_mesh(2, 2, 2), core.config()

    def init():
        return init_state(core.model(), config, core.numbers())

    shardings = state_shardings(mesh, jax.eval_shape(init))
    state = jax.jit(init, out_shardings=shardings, compiler_options=core.fast_compile())()
    expected = named(params_shardings(mesh, state.params))
    for tree in (state.params, state.opt_state.mu, state.opt_state.nu):
        for name, leaf in named(tree).items():
            assert leaf.sharding.is_equivalent_to(expected[name], leaf.ndim), name
    up = state.opt_state.nu["trunk"]["blocks"]["up"]["kernel"]
    assert up.shape == (2, 16, 64)
    assert up.addressable_shards[0].data.shape == (2, 8, 32)
    rest = (state.multipliers, state.weights, state.hyper, state.score_ema, state.key, state.opt_state.count)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(rest))


def test_sequences_are_cut_along_data_and_fsdp(core):
    sharding = rollout_sharding(make_mesh(2, 2, 2))
    tokens = jax.device_put(np.zeros((16, 11), np.int32), sharding)
    assert {shard.data.shape for shard in tokens.addressable_shards} == {(4, 11)}


def test_a_mesh_takes_exactly_the_devices_there_are():
    assert dict(make_mesh(2, 2, 2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert dict(make_mesh(2, devices=jax.devices()[:2]).shape) == {"data": 2, "fsdp": 1, "tensor": 1}
    with pytest.raises(ValueError, match=r"data=2 x fsdp=1 x tensor=1 needs 2 devices, found 8 \(cpu\)"):
        make_mesh(2)
    with pytest.raises(ValueError, match="needs 16 devices, found 8"):
        make_mesh(4, 2, 2)


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("data=8", (8, 1, 1)),
        ("tensor=2,data=2,fsdp=2", (2, 2, 2)),
        (" fsdp = 4 , tensor=2", (1, 4, 2)),
        ("data=-1,fsdp=4", (2, 4, 1)),
        ("data=8,fsdp=-1", (8, 1, 1)),
    ],
)
def test_a_mesh_from_its_text(text, sizes):
    mesh = mesh_from_text(text)
    assert tuple(mesh.shape.values()) == sizes
    assert row_shards(mesh) == sizes[0] * sizes[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data=4,pipe=2", "'pipe=2' is not AXIS=SIZE with an axis among data, fsdp, tensor"),
        ("8", "'8' is not AXIS=SIZE"),
        ("data=4,,fsdp=2", "'' is not AXIS=SIZE"),
        ("data=4,data=2", "data is given twice"),
        ("data=0", "the size of data must be 1 or more, or -1 for the rest, not '0'"),
        ("fsdp=two", "the size of fsdp must be 1 or more, or -1 for the rest, not 'two'"),
        ("data=-1,fsdp=-1", "only one axis can be -1"),
    ],
)
def test_a_text_that_is_no_mesh_is_refused(text, message):
    with pytest.raises(ValueError, match=f"--mesh {re.escape(text)}: .*{re.escape(message)}"):
        parse_mesh(text)


@pytest.mark.parametrize(
    ("text", "given"), [("data=4", 4), ("data=8,tensor=2", 16), ("data=3,fsdp=-1", 3), ("data=16,fsdp=-1", 16)]
)
def test_a_mesh_of_another_number_of_devices_is_refused(text, given):
    message = rf"--mesh {text}: its sizes multiply to {given}, found 8 cpu device\(s\) in 1 process\(es\)"
    with pytest.raises(ValueError, match=message):
        mesh_from_text(text)


def test_the_cache_of_the_sampler_is_cut_along_rows_and_heads(core):
    """16 sequences over data x fsdp = 4, 2 heads over tensor = 2: keys are `[.., 4, 1, P, E]` on each device."""
    mesh, (graphdef, params) = make_mesh(2, 2, 2), split(core.model(critic=CriticConfig(kind="none")))
    params = jax.device_put(params, params_shardings(mesh, params))
    prompts = jax.device_put(np.full((16, 6), 3, np.int32), rollout_sharding(mesh))
    sampler = compile_sampler(graphdef, SamplerConfig(max_new_tokens=5))
    program = sampler.lower(params, prompts, prompts > 0, jax.random.key(0)).compile().as_text()
    loops = [line.split(" while(")[0] for line in program.splitlines() if re.search(r"= \(.*\) while\(", line)]
    assert any(re.search(r"[\[,]4,1,11,8\]", line) for line in loops), loops
    assert not any(re.search(r"[\[,](16,\d,11,8|4,2,11,8)\]", line) for line in loops)
