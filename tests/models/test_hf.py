"""Hugging Face folders in and out, without torch: golden checkpoints, round trips, refusals."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from morejax.models import DecoderConfig, RopeConfig, hf
from morejax.models.safetensors_files import INDEX, SINGLE, Tensor, read_folder, read_header, write_file
from morejax.models.split import flatten
from morejax.sharding import make_mesh, parameter_spec

GOLDEN = Path(__file__).parents[1] / "golden" / "hf"
GPT2 = DecoderConfig(vocab_size=19, max_length=16, layers=2, width=16, heads=4, mlp="gelu", mlp_width=24)
LLAMA = replace(
    GPT2,
    kv_heads=2,
    head_dim=6,
    mlp="swiglu",
    norm="rms",
    positions="rope",
    rope=RopeConfig(theta=500.0, scaling="llama3", factor=8.0, original_length=16),
    qkv_bias=False,
    out_bias=False,
    mlp_bias=False,
)
FAMILIES = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "llama with biases": replace(LLAMA, qkv_bias=True, out_bias=True, mlp_bias=True, rope=RopeConfig()),
    "qwen2": replace(LLAMA, qkv_bias=True, window=3, window_layers=(1,)),
    "qwen3": replace(LLAMA, qk_norm=True, window=3, rope=RopeConfig(scaling="yarn", factor=2.0, original_length=8)),
}


def random_params(core, config, seed=0):
    return core.random_params(hf.structure_of(config)[1], seed=seed)


def same(found, wanted):
    found, wanted = flatten(found), flatten(wanted)
    assert found.keys() == wanted.keys()
    for name, leaf in wanted.items():
        np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(leaf), err_msg=name)


# Golden checkpoints, written by transformers


@pytest.mark.parametrize("name", ["gpt2", "llama", "smollm2", "qwen2", "qwen3"])
def test_logits_equal_those_that_torch_gave(name):
    """Left-padded rows of 12, 9 and 5 tokens; the Qwen3 checkpoint is in bfloat16."""
    expected = np.load(GOLDEN / name / "expected.npz")
    found = hf.logits_of(GOLDEN / name, expected["ids"], expected["mask"])
    assert found.shape == (3, 12, 24)
    assert np.abs(expected["logits"]).max() > 1.0
    np.testing.assert_allclose(found[expected["mask"]], expected["logits"][expected["mask"]], atol=2e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama", "smollm2", "qwen2", "qwen3"])
def test_what_is_written_again_holds_the_same_tensors(tmp_path, name):
    """Import and export are inverse on real checkpoints too: names, shapes and values."""
    dtype = "bfloat16" if name == "qwen3" else "float32"
    loaded = hf.load_pretrained(GOLDEN / name)
    hf.save_pretrained(tmp_path, loaded.config, loaded.params, dtype=dtype)
    before, after = read_folder(GOLDEN / name), read_folder(tmp_path)
    assert before.keys() == after.keys()
    for key, stored in before.items():
        assert stored.dtype == after[key].dtype
        np.testing.assert_array_equal(stored.read(), after[key].read(), err_msg=key)
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, GOLDEN / name))
    assert hf.from_hf_config(ours) == hf.from_hf_config(theirs)
    assert ours["architectures"] == theirs["architectures"]


# Round trips


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_random_parameters_survive_the_round_trip(core, tmp_path, name, tied):
    config = replace(FAMILIES[name], tied=tied)
    params = random_params(core, config)
    folder = hf.save_pretrained(tmp_path / "model", config, params)
    loaded = hf.load_pretrained(folder)
    same(loaded.params, params)
    assert ("policy" in loaded.params) == (not tied)
    assert hf.to_hf_config(loaded.config) == hf.to_hf_config(config)
    assert json.loads((folder / "config.json").read_text())["model_type"] == name.split()[0]


def test_a_large_model_is_cut_into_shards(core, tmp_path):
    config = FAMILIES["qwen2"]
    params = random_params(core, config)
    hf.save_pretrained(tmp_path, config, params, max_shard_bytes=2000)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == 4 * sum(leaf.size for leaf in jax.tree.leaves(params))
    assert all((tmp_path / name).stat().st_size < 2000 + 4000 for name in files)
    same(hf.load_pretrained(tmp_path).params, params)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_types_are_written_and_read(core, tmp_path, dtype):
    params = random_params(core, LLAMA)
    hf.save_pretrained(tmp_path, LLAMA, params, dtype=dtype)
    assert {stored.dtype for stored in read_folder(tmp_path).values()} == {jnp.dtype(dtype)}
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == dtype
    rounded = jax.tree.map(lambda leaf: leaf.astype(dtype).astype(jnp.float32), params)
    same(hf.load_pretrained(tmp_path).params, rounded)
    kept = hf.load_pretrained(tmp_path, param_dtype="bfloat16").params
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype("bfloat16")}


def test_heads_lie_in_their_own_file(core, tmp_path):
    params = random_params(core, LLAMA) | {"value": {"head": {"kernel": jnp.arange(6.0).reshape(2, 3)}}}
    hf.save_pretrained(tmp_path, LLAMA, params, heads={"value": params["value"]}, heads_about={"streams": ["likeness"]})
    assert set(hf.load_pretrained(tmp_path).params) == {"trunk"}
    same(hf.load_heads(tmp_path), {"value": params["value"]})
    assert json.loads((tmp_path / "heads" / "heads.json").read_text()) == {"streams": ["likeness"]}
    # Beside config.json there is nothing that another reader could take for the model's.
    assert [path.name for path in tmp_path.glob("*.safetensors")] == [SINGLE]
    assert hf.load_heads(GOLDEN / "gpt2") == {}


def test_a_folder_with_a_model_is_not_written_over(core, tmp_path):
    params = random_params(core, LLAMA)
    hf.save_pretrained(tmp_path, LLAMA, params)
    with pytest.raises(FileExistsError, match="holds a model already: name another folder"):
        hf.save_pretrained(tmp_path, LLAMA, params)


def test_filler_of_the_vocabulary_stays_here(core, tmp_path):
    """19 token ids on 32 rows: files have 19, whatever the padding is when they are read again."""
    config = replace(LLAMA, vocab_multiple=16, tied=False)
    params = random_params(core, config)
    hf.save_pretrained(tmp_path, config, params)
    assert read_folder(tmp_path)["lm_head.weight"].shape == (19, 16)
    loaded = hf.load_pretrained(tmp_path, vocab_multiple=8)
    table = np.asarray(loaded.params["trunk"]["embedding"])
    assert table.shape == (24, 16)
    np.testing.assert_array_equal(table[:19], params["trunk"]["embedding"][:19])
    np.testing.assert_array_equal(table[19:], 0.0)


def test_new_tokens_start_near_the_mean_of_the_others(core, tmp_path):
    config = replace(LLAMA, tied=False)
    params = random_params(core, config)
    hf.save_pretrained(tmp_path, config, params)
    loaded = hf.load_pretrained(tmp_path, vocab_size=30)
    assert loaded.config.vocab_size == 30
    for part, key in (("trunk", "embedding"), ("policy", "kernel")):
        before, after = np.asarray(params[part][key]), np.asarray(loaded.params[part][key])
        assert after.shape == (30, 16)
        np.testing.assert_array_equal(after[:19], before)
        distance = (after[19:] - before.mean(0)) / before.std(0)
        assert 0.05 < distance.std() < 0.2
        assert len(np.unique(after[19:, 0])) == 11
    with pytest.raises(ValueError, match=r"vocab_size 18: .* has 19 token ids, and none is left out"):
        hf.load_pretrained(tmp_path, vocab_size=18)


# Slices per device


def test_every_device_reads_its_own_slice(core, tmp_path, monkeypatch):
    """On 2 x 2 x 2 devices the parameters are those of one device, and no read of a parameter is the whole of it."""
    config = replace(LLAMA, vocab_size=20, tied=False, heads=8, kv_heads=4, head_dim=4)
    params = random_params(core, config)
    hf.save_pretrained(tmp_path, config, params)
    mesh, read = make_mesh(2, 2, 2), []
    make = jax.make_array_from_callback

    def spy(shape, sharding, callback):
        def counted(index):
            read.append((shape, callback(index).shape))
            return callback(index)

        return make(shape, sharding, counted)

    monkeypatch.setattr(jax, "make_array_from_callback", spy)
    loaded = hf.load_pretrained(tmp_path, mesh=mesh, vocab_size=24)
    whole = hf.load_pretrained(tmp_path, vocab_size=24)
    same(loaded.params, whole.params)
    for name, leaf in flatten(loaded.params).items():
        assert leaf.sharding.spec == parameter_spec(name, leaf.shape, mesh)
    kernel = [part for shape, part in read if shape == (2, 16, 64)]  # queries, keys and values of two layers
    assert kernel[0] == (2, 8, 32)
    assert math.prod(kernel[0]) * 4 == 2 * 16 * 64


# Refusals


def rewrite(folder, change):
    """Read a folder's tensors, let `change` alter the mapping, write them again."""
    arrays = {name: np.asarray(stored.read()) for name, stored in read_header(folder / SINGLE).items()}
    change(arrays)
    write_file(
        folder / SINGLE, [Tensor(name, array.shape, array.dtype, lambda a=array: a) for name, array in arrays.items()]
    )


@pytest.fixture
def folder(core, tmp_path):
    return hf.save_pretrained(tmp_path / "m", LLAMA, random_params(core, LLAMA))


def test_a_missing_tensor_is_named(folder):
    rewrite(folder, lambda arrays: arrays.pop("model.layers.1.self_attn.k_proj.weight"))
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn\.k_proj\.weight: missing, expected \[12, 16\] in "):
        hf.load_pretrained(folder)


def test_an_extra_tensor_is_named(folder):
    rewrite(folder, lambda arrays: arrays.update({"model.layers.0.self_attn.q_proj.bias": np.zeros(24, np.float32)}))
    with pytest.raises(ValueError, match=r"self_attn\.q_proj\.bias \[24\] in .*safetensors: expected no such tensor"):
        hf.load_pretrained(folder)


def test_a_mis_shaped_tensor_is_named(folder):
    rewrite(folder, lambda arrays: arrays.update({"model.norm.weight": np.zeros(15, np.float32)}))
    with pytest.raises(ValueError, match=r"model\.norm\.weight: found \[15\], expected \[16\] in .*model\.safetensors"):
        hf.load_pretrained(folder)


def test_many_problems_are_counted(folder):
    rewrite(folder, lambda arrays: [arrays.pop(name) for name in list(arrays) if "layers.1" in name])
    with pytest.raises(ValueError, match=r"\(and 4 more\)"):
        hf.load_pretrained(folder)


def test_a_head_beside_tied_embeddings_and_old_buffers_are_passed_over(core, folder, tmp_path):
    rewrite(folder, lambda arrays: arrays.update({"lm_head.weight": np.ones((19, 16), np.float32)}))
    rewrite(folder, lambda arrays: arrays.update({"model.rotary_emb.inv_freq": np.ones(3, np.float32)}))
    same(hf.load_pretrained(folder).params, random_params(core, LLAMA))


def test_a_gpt2_checkpoint_of_the_bare_trunk_is_read(core, tmp_path):
    """As the first GPT-2 checkpoints are: no prefix, and the causal masks among the tensors."""
    params = random_params(core, GPT2)
    folder = hf.save_pretrained(tmp_path, GPT2, params)

    def strip(arrays):
        for name in list(arrays):
            arrays[name.removeprefix("transformer.")] = arrays.pop(name)
        arrays["h.0.attn.bias"] = np.ones((1, 1, 16, 16), np.float32)

    rewrite(folder, strip)
    same(hf.load_pretrained(folder).params, params)


def test_folders_that_are_not_whole_say_what_is_missing(core, tmp_path, folder):
    with pytest.raises(FileNotFoundError, match=r"no config\.json; expected a folder in the Hugging Face form"):
        hf.load_pretrained(tmp_path)
    shutil.move(folder / SINGLE, folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor .* \(found pytorch_model\.bin\)"):
        hf.load_pretrained(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": "model-1.safetensors"}}))
    with pytest.raises(FileNotFoundError, match=r"model-1\.safetensors: .* names this shard, and it is not there"):
        hf.load_pretrained(folder)
    write_file(folder / "model-1.safetensors", [])
    with pytest.raises(ValueError, match=r"not in their shard: model\.norm\.weight \(model-1\.safetensors\)"):
        hf.load_pretrained(folder)


@pytest.mark.parametrize("content", [b"", b"1234567", b"\xff" * 20, (5).to_bytes(8, "little") + b"hello"])
def test_a_broken_file_is_named(tmp_path, content):
    (tmp_path / SINGLE).write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors: not a safetensors file"):
        read_folder(tmp_path)


def test_a_truncated_file_is_named(folder):
    whole = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(whole[:-10])
    with pytest.raises(ValueError, match=r"tensor .* does not lie within the file's \d+ bytes"):
        hf.load_pretrained(folder)


def test_files_are_those_of_the_safetensors_library(tmp_path):
    """Written here and read there, and the other way round; bfloat16 included."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    arrays = {"a": np.arange(6.0, dtype=np.float32).reshape(2, 3), "b": np.array([1.5], ml_dtypes.bfloat16)}
    write_file(tmp_path / "x", [Tensor(name, a.shape, a.dtype, lambda a=a: a) for name, a in arrays.items()])
    with safe_open(tmp_path / "x", "numpy") as opened:
        assert opened.metadata() == {"format": "pt"}
        np.testing.assert_array_equal(opened.get_tensor("a"), arrays["a"])
        assert opened.get_slice("b").get_dtype() == "BF16"
    save_file({"a": arrays["a"]}, tmp_path / "y")
    np.testing.assert_array_equal(read_header(tmp_path / "y")["a"].read(), arrays["a"])


# Configurations


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "bert"}, "model_type 'bert' is not one of gpt2, llama, qwen2, qwen3"),
        ({"model_type": "gpt2", "activation_function": "relu"}, "activation_function 'relu' is not supported"),
        ({"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True is no"),
        ({"model_type": "llama", "hidden_act": "gelu"}, "hidden_act 'gelu' is not supported, expected silu or swish"),
        (
            {"model_type": "llama", "rope_scaling": {"rope_type": "longrope", "factor": 2.0}},
            "rope_type 'longrope' is not supported, expected none or linear or llama3 or yarn",
        ),
        (
            {"model_type": "llama", "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "partial_rotary_factor 0.5 is not supported, expected 1.0",
        ),
    ],
)
def test_what_a_decoder_cannot_express_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        hf.from_hf_config(config)


def test_the_old_form_of_scaled_rotation_is_read():
    """As Llama 3.1's config.json has it."""
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 8192
    config = hf.from_hf_config({"model_type": "llama", "rope_theta": 500000.0, "rope_scaling": scaling})
    assert config.rope == RopeConfig(theta=5e5, scaling="llama3", factor=8.0, original_length=8192)
    config = hf.from_hf_config(
        {"model_type": "qwen2", "rope_theta": 1e6, "rope_scaling": {"type": "yarn", "factor": 4}}
    )
    assert config.rope == RopeConfig(theta=1e6, scaling="yarn", factor=4, original_length=32768)


def test_a_decoder_that_no_family_has_says_why():
    mixed = replace(GPT2, norm="rms")
    with pytest.raises(ValueError, match=r"no Hugging Face family .*gpt2: norm='rms'; llama: positions='learned'"):
        hf.to_hf_config(mixed)
    with pytest.raises(ValueError, match="llama: window=3; qwen2: qkv_bias=False; qwen3: qk_norm=False"):
        hf.to_hf_config(replace(LLAMA, window=3))
