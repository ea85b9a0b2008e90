"""Adapters: they begin as nothing, are all that is trained, share one base, and merge into the weights."""

from __future__ import annotations

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from morejax.compile import compile_step
from morejax.models import ActorCritic, CriticConfig, DecoderConfig, LoraConfig, hf, merge, split
from morejax.models.adapters import load_adapters, save_adapters
from morejax.models.lora import is_adapter, merge_adapters, partition
from morejax.models.safetensors_files import read_header
from morejax.models.split import Bound, flatten, unflatten, whole
from morejax.sharding import make_mesh

LLAMA = DecoderConfig(
    vocab_size=64,
    max_length=32,
    layers=2,
    width=16,
    heads=4,
    kv_heads=2,
    mlp="swiglu",
    mlp_width=24,
    norm="rms",
    positions="rope",
    qkv_bias=True,
    out_bias=False,
    mlp_bias=False,
    tied=False,
    lora=LoraConfig(rank=3, alpha=6.0),
)
GPT2 = DecoderConfig(vocab_size=64, max_length=32, layers=2, width=16, heads=4, lora=LoraConfig(rank=2))


def build(core, config, critic=None, streams=0, seed=0):
    """A model with random parameters, adapters included."""
    abstract = nnx.eval_shape(lambda: ActorCritic(config, critic=critic, streams=streams, rngs=nnx.Rngs(0)))
    graphdef, params = split(abstract)
    return graphdef, core.random_params(params, seed=seed, scale=0.3)


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(0, 64, (2, 9)), np.ones((2, 9), bool)


def hidden_and_logits(core, graphdef, params, tokens):
    @jax.jit
    def run(params):
        model = merge(graphdef, params)
        return model.hidden(*tokens), model.response_hidden(*tokens, 5), model.logits(model.hidden(*tokens))

    return [np.asarray(x) for x in run(params)]


@pytest.mark.parametrize("targets", ["q|k|v|out|gate|up|down", "q|v", "k|down", "up"])
@pytest.mark.parametrize("base", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_merged_weights_give_the_same_model(core, tokens, base, targets):
    """Also for the response's positions alone, whose queries are projected apart from keys and values."""
    config = replace(base, lora=replace(base.lora, targets=targets))
    graphdef, params = build(core, config)
    plain, merged = merge_adapters(config, params)
    assert plain.lora.rank == 0
    assert not any(is_adapter(name) for name in flatten(merged))
    structure = split(nnx.eval_shape(lambda: ActorCritic(plain, rngs=nnx.Rngs(0))))[0]
    found = hidden_and_logits(core, graphdef, params, tokens)
    for a, b in zip(found, hidden_and_logits(core, structure, merged, tokens), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-5)
    without = {name: leaf for name, leaf in flatten(params).items() if not is_adapter(name)}
    for name, leaf in flatten(merged).items():
        if name.endswith("kernel") and name.startswith("trunk"):
            changed = np.abs(np.asarray(leaf) - np.asarray(without[name])).max((0, 1)) > 0
            assert changed.any() == any(part in targets.split("|") for part in columns_of(name))
        else:
            np.testing.assert_array_equal(leaf, without[name])


def columns_of(name):
    module = name.split("/")[-2]
    return ("q", "k", "v") if module == "qkv" else (module,)


def test_adapters_by_hand(core):
    """alpha / rank A B on the columns of q alone."""
    config = replace(GPT2, layers=1, width=4, heads=1, lora=LoraConfig(rank=2, alpha=8.0, targets="q"))
    _, params = build(core, config)
    merged = flatten(merge_adapters(config, params)[1])["trunk/blocks/attention/qkv/kernel"][0]
    leaves = flatten(params)
    a, b, w = (np.asarray(leaves[f"trunk/blocks/attention/qkv/{x}"][0]) for x in ("lora_a", "lora_b", "kernel"))
    assert (a.shape, b.shape, w.shape) == ((4, 2), (2, 4), (4, 12))
    np.testing.assert_allclose(merged[:, :4], w[:, :4] + 4.0 * a @ b, rtol=1e-5)
    np.testing.assert_array_equal(merged[:, 4:], w[:, 4:])


def test_fresh_adapters_change_nothing_and_learn_at_once(core, tokens):
    model = jax.jit(lambda: split(ActorCritic(LLAMA, rngs=nnx.Rngs(0)))[1])()
    leaves = flatten(model)
    assert all(not leaf.any() for name, leaf in leaves.items() if name.endswith("lora_b"))
    spread = [float(leaf.std()) for name, leaf in leaves.items() if name.endswith("lora_a")]
    np.testing.assert_allclose(spread, np.array([1 / np.sqrt(48)] * len(spread)), rtol=0.35)
    plain = {name: leaf for name, leaf in leaves.items() if not is_adapter(name)}
    merged = flatten(merge_adapters(LLAMA, model)[1])
    for name, leaf in plain.items():
        np.testing.assert_array_equal(merged[name], leaf)


@pytest.mark.parametrize("kind", ["base", "shared", "own"])
def test_what_is_trained_and_what_is_shared(core, kind):
    graphdef, params = build(core, LLAMA, CriticConfig(kind=kind, layers=1, width=8, heads=2, hidden=8), 5)
    trained, frozen = partition(params, LLAMA.lora)
    names = set(flatten(trained))
    assert set(flatten(frozen)) == {name for name in flatten(params) if name[:5] != "value" and not is_adapter(name)}
    assert {name for name in names if name.startswith("trunk")} == {
        n for n in flatten(params) if is_adapter(n) and n[:5] == "trunk"
    }
    critics = {name for name in names if name.startswith("value/trunk")}
    if kind == "own":
        assert "value/trunk/embedding" in critics
        assert not any(is_adapter(name) for name in critics)
    else:
        assert all(is_adapter(name) for name in critics)
        assert bool(critics) == (kind == "base")
    full = whole(Bound(graphdef, frozen), trained)
    assert set(flatten(full)) == set(flatten(params))
    if kind == "base":
        assert full["value"]["trunk"]["embedding"] is full["trunk"]["embedding"]


def test_named_parameters_are_trained_as_they_are(core):
    _, params = build(core, LLAMA)
    trained, frozen = partition(params, replace(LLAMA.lora, trained="embedding|norm"))
    names = {name for name in flatten(trained) if not is_adapter(name)}
    assert names == {
        "trunk/embedding",
        "trunk/final_norm/scale",
        "trunk/blocks/norm1/scale",
        "trunk/blocks/norm2/scale",
    }
    assert not names & set(flatten(frozen))
    with pytest.raises(ValueError, match=r"--model\.lora\.trained 'router' is found in no parameter \(policy/kernel"):
        partition(params, replace(LLAMA.lora, trained="router"))


# The step


def lora_state(core, config, critic_kind, tx=None):
    graphdef, params = build(core, LLAMA, CriticConfig(kind=critic_kind, hidden=8), len(config.streams))
    return core.state(config, model=merge(graphdef, params), tx=tx)


@pytest.mark.parametrize("kind", ["base", "shared"])
def test_a_step_moves_adapters_and_critic_alone(core, kind):
    """The optimizer holds nothing for the base, the base stays (and stays with the caller: it is not donated)."""
    config = core.config()
    state = lora_state(core, config, kind)
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state))
    assert 2 * count <= moments <= 2 * count + 1
    base = jax.tree.map(np.asarray, state.frozen)
    before = jax.tree.map(np.asarray, state.params)
    step = compile_step(config, state=state, compiler_options=core.fast_compile())
    new, metrics = step(state, core.rollout())
    assert np.isfinite(float(metrics["loss/policy"] if "loss/policy" in metrics else metrics["kl"]))
    assert new.frozen is state.frozen
    jax.tree.map(np.testing.assert_array_equal, new.frozen, base)
    moved = {name: not np.array_equal(a, flatten(before)[name]) for name, a in flatten(new.params).items()}
    assert all(moved.values()), moved
    newer, _ = step(new, core.rollout())
    assert int(newer.step) == 2


def test_a_step_with_adapters_is_the_step_of_the_whole_model_by_the_chain_rule(core):
    """With SGD, B = 0 and a small rate, W + s A B moves by s^2 A A^T times what W would have moved by."""
    import optax

    config, numbers = core.config(minibatches=1), core.numbers(max_grad_norm=1e9, learning_rate=1e-3)
    lora = replace(LLAMA.lora, targets="down", alpha=3.0)
    config_lora = replace(LLAMA, lora=lora)
    graphdef, params = build(core, config_lora, CriticConfig(kind="shared", hidden=8), len(config.streams))
    params["trunk"]["blocks"]["down"]["lora_b"] = jnp.zeros_like(params["trunk"]["blocks"]["down"]["lora_b"])
    tx = optax.identity()
    state = core.state(config, numbers, model=merge(graphdef, params), tx=tx)
    plain, merged = merge_adapters(config_lora, params)
    critic = CriticConfig(kind="shared", hidden=8)
    structure = split(
        nnx.eval_shape(lambda: ActorCritic(plain, critic=critic, streams=len(config.streams), rngs=nnx.Rngs(0)))
    )[0]
    other = core.state(config, numbers, model=merge(structure, merged), tx=tx)
    rollout, options = core.rollout(), {"donate": False, "compiler_options": core.fast_compile()}
    adapted, _ = compile_step(config, state=state, **options)(state, rollout)
    moved, _ = compile_step(config, **options)(other, rollout)
    kernel = np.asarray(merged["trunk"]["blocks"]["down"]["kernel"], np.float64)
    step = np.asarray(moved.params["trunk"]["blocks"]["down"]["kernel"], np.float64) - kernel
    b = np.asarray(adapted.params["trunk"]["blocks"]["down"]["lora_b"], np.float64)
    a = np.asarray(params["trunk"]["blocks"]["down"]["lora_a"], np.float64)
    np.testing.assert_allclose(b, np.swapaxes(a, 1, 2) @ step, atol=1e-3 * np.abs(b).max())
    assert np.abs(b).max() > 1e-6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": -1}, "--model.lora.rank must be at least 0, not -1"),
        ({"rank": 2, "alpha": 0.0}, "--model.lora.alpha must be above 0, not 0.0"),
        ({"rank": 2, "targets": "query"}, "--model.lora.targets 'query' matches none of q, k, v, out, gate, up, down"),
        ({"rank": 2, "targets": "q("}, r"--model.lora.targets 'q\(' is no regular expression"),
    ],
)
def test_wrong_settings_name_their_flag(changes, message):
    with pytest.raises(ValueError, match=message):
        LoraConfig(**changes)


def test_a_critic_on_the_base_needs_adapters():
    with pytest.raises(ValueError, match=r"--critic\.kind base needs adapters: give --model\.lora\.rank"):
        nnx.eval_shape(
            lambda: ActorCritic(
                replace(LLAMA, lora=LoraConfig()), critic=CriticConfig(kind="base"), streams=2, rngs=nnx.Rngs(0)
            )
        )


# In and out


def trained_of(core, config, seed=3):
    return partition(build(core, config, seed=seed)[1], config.lora)[0]


@pytest.mark.parametrize("targets", ["q|k|v|out|gate|up|down", "q|v"])
@pytest.mark.parametrize("base", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_adapters_survive_peft_form(core, tmp_path, base, targets):
    config = replace(base, lora=replace(base.lora, targets=targets))
    trained = trained_of(core, config)
    save_adapters(tmp_path, config, trained, base="somewhere/base")
    found = flatten(load_adapters(tmp_path, config))
    assert found.keys() == flatten(trained).keys()
    for name, leaf in flatten(trained).items():
        np.testing.assert_array_equal(found[name], leaf, err_msg=name)
    with pytest.raises(ValueError, match=r"lora_A\.weight: found rank \d, expected \d+ in .*adapter_model"):
        load_adapters(tmp_path, replace(config, lora=replace(config.lora, rank=4)))


def test_peft_form_by_names_and_shapes(core, tmp_path):
    config = replace(LLAMA, lora=replace(LLAMA.lora, targets="q|v|down", trained="embedding"))
    save_adapters(tmp_path, config, trained_of(core, config), base="somewhere/base")
    stored = {name: one.shape for name, one in read_header(tmp_path / "adapter_model.safetensors").items()}
    layers = {
        f"base_model.model.model.layers.{layer}.{module}.lora_{kind}.weight": shape
        for layer in range(2)
        for module, kind, shape in (
            ("self_attn.q_proj", "A", (3, 16)),
            ("self_attn.q_proj", "B", (16, 3)),
            ("self_attn.v_proj", "A", (3, 16)),
            ("self_attn.v_proj", "B", (8, 3)),
            ("mlp.down_proj", "A", (3, 24)),
            ("mlp.down_proj", "B", (16, 3)),
        )
    }
    assert stored == layers | {"base_model.model.model.embed_tokens.weight": (64, 16)}
    document = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (document["peft_type"], document["r"], document["lora_alpha"]) == ("LORA", 3, 6.0)
    assert document["base_model_name_or_path"] == "somewhere/base"
    assert document["target_modules"] == ["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"]
    assert document["modules_to_save"] == ["model.embed_tokens"]
    assert document["fan_in_fan_out"] is False


def test_gpt2_adapters_are_one_for_queries_keys_and_values(core, tmp_path):
    config = replace(GPT2, lora=replace(GPT2.lora, targets="q|v|up"))
    save_adapters(tmp_path, config, trained_of(core, config), base="gpt2")
    stored = read_header(tmp_path / "adapter_model.safetensors")
    b = stored["base_model.model.transformer.h.1.attn.c_attn.lora_B.weight"].read()
    assert b.shape == (48, 4)
    assert not b[16:32].any()  # keys
    assert not b[:16, 2:].any()
    assert not b[32:, :2].any()
    document = json.loads((tmp_path / "adapter_config.json").read_text())
    assert document["target_modules"] == ["attn.c_attn", "mlp.c_fc"]
    assert document["rank_pattern"] == {"attn.c_attn": 4}
    assert document["alpha_pattern"] == {"attn.c_attn": 32.0}
    assert document["fan_in_fan_out"] is True


def test_a_model_without_adapters_has_none_to_save(core, tmp_path):
    with pytest.raises(ValueError, match=r"this model has no adapters: --model\.lora\.rank is 0"):
        save_adapters(tmp_path, replace(LLAMA, lora=LoraConfig()), {}, base="x")
    with pytest.raises(FileNotFoundError, match=r"no adapter_model\.safetensors"):
        load_adapters(tmp_path, LLAMA)


@pytest.mark.parametrize("mesh", [None, (2, 2, 2)])
def test_a_folder_is_loaded_with_fresh_adapters_and_saved_with_merged_ones(core, tmp_path, tokens, mesh):
    plain = replace(LLAMA, lora=LoraConfig())
    base = core.random_params(hf.structure_of(plain)[1], scale=0.3)
    hf.save_pretrained(tmp_path / "base", plain, base)
    made = None if mesh is None else make_mesh(*mesh)
    loaded = hf.load_pretrained(tmp_path / "base", lora=LLAMA.lora, mesh=made)
    assert loaded.config.lora == LLAMA.lora
    graphdef = hf.structure_of(loaded.config)[0]
    assert set(flatten(loaded.params)) == set(flatten(hf.structure_of(loaded.config)[1]))
    first = np.asarray(hf.logits_of(tmp_path / "base", tokens[0]))
    ours = hidden_and_logits(core, graphdef, loaded.params, tokens)[2]
    np.testing.assert_allclose(ours, first, atol=2e-5)
    trained = jax.tree.map(lambda leaf: leaf + 0.1, partition(loaded.params, LLAMA.lora)[0])
    params = whole(Bound(graphdef, partition(loaded.params, LLAMA.lora)[1]), trained)
    hf.save_pretrained(tmp_path / "out", loaded.config, params)
    moved = np.asarray(hf.logits_of(tmp_path / "out", tokens[0]))
    np.testing.assert_allclose(moved, hidden_and_logits(core, graphdef, params, tokens)[2], atol=3e-5)
    assert np.abs(moved - first).max() > 0.1


@pytest.mark.parity
@pytest.mark.parametrize("base", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_peft_reads_the_adapters(core, tmp_path, tokens, base):
    torch = pytest.importorskip("torch", reason="needs the parity extra")
    peft = pytest.importorskip("peft", reason="needs peft")
    import transformers

    config = replace(base, lora=replace(base.lora, trained="final_norm"))
    graphdef, params = build(core, config)
    plain = {name: leaf for name, leaf in flatten(params).items() if not is_adapter(name)}
    changed = params["trunk"]["final_norm"]["scale"]
    frozen = unflatten(plain | {"trunk/final_norm/scale": 0.5 * changed})
    hf.save_pretrained(tmp_path / "base", replace(config, lora=LoraConfig()), frozen)
    save_adapters(tmp_path / "adapter", config, params, base=tmp_path / "base")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    with torch.no_grad():
        found = model(torch.tensor(tokens[0])).logits.numpy()
    np.testing.assert_allclose(found, hidden_and_logits(core, graphdef, params, tokens)[2], atol=1e-4)
