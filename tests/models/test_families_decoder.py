"""The decoder's flags: one forward pass, however it is cut into prefill, blocks and single tokens."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from morejax.models import Decoder, DecoderConfig, RopeConfig, merge, split

LENGTH = 12
GPT2 = DecoderConfig(vocab_size=48, max_length=16, layers=3, width=16, heads=4)
LLAMA = replace(
    GPT2,
    kv_heads=2,
    head_dim=6,
    mlp="swiglu",
    mlp_width=20,
    norm="rms",
    positions="rope",
    qkv_bias=False,
    out_bias=False,
    mlp_bias=False,
)
CONFIGS = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "one head of keys": replace(LLAMA, kv_heads=1),
    "qwen2": replace(LLAMA, qkv_bias=True),
    "qwen3": replace(LLAMA, qk_norm=True),
    "window": replace(LLAMA, window=3),
    "window on one layer": replace(LLAMA, window=3, window_layers=(1,)),
    "exact gelu, learned positions, window": replace(GPT2, mlp="gelu", window=4),
    "shifted embeddings": replace(LLAMA, shift=True),
    "shifted embeddings, learned positions": replace(GPT2, shift=True),
    "yarn": replace(LLAMA, rope=RopeConfig(scaling="yarn", factor=4.0, original_length=8)),
}


@cache
def structure(config):
    return split(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0))))


@pytest.fixture(scope="module")
def make(core):
    """Random parameters of a config: the scanned form's are the unrolled one's."""
    return cache(lambda config: core.random_params(structure(config)[1], scale=0.3))


@pytest.fixture(scope="module")
def call(core):
    @cache
    def compiled(config, method, **static):
        def function(params, args):
            return getattr(merge(structure(config)[0], params), method)(*args, **static)

        return jax.jit(function, compiler_options=core.fast_compile())

    def go(config, params, method, *args, **static):
        return compiled(config, method, **static)(params, args)

    return go


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    mask = np.arange(LENGTH)[None] >= np.array([0, 2, 4])[:, None]
    return rng.integers(0, 48, (3, LENGTH)), mask


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_prefill_extend_and_decode_equal_the_full_forward(make, call, batch, name, scan):
    """Prompts of 5 columns, then a block of 4, then three tokens one at a time."""
    tokens, mask = batch
    params = make(CONFIGS[name])
    full = call(CONFIGS[name], params, "hidden", tokens, mask)
    config = replace(CONFIGS[name], scan=scan)
    np.testing.assert_allclose(call(config, params, "hidden", tokens, mask, start=7), full[:, 7:], atol=2e-5)
    hidden, cache = call(config, params, "prefill", tokens[:, :5], mask[:, :5], cache_length=LENGTH)
    np.testing.assert_allclose(hidden, full[:, 4], atol=2e-5)
    assert cache.keys.shape == (3, 3, config.key_heads, LENGTH, config.head_width)
    filled = mask & (np.arange(LENGTH) < 5)[None]
    args = (tokens[:, 5:9], mask[:, 5:9], tokens[:, 4], filled.sum(-1), jnp.int32(5), filled, cache)
    hidden, cache = call(config, params, "extend", *args)
    np.testing.assert_allclose(hidden, full[:, 8], atol=2e-5)
    for slot in range(9, LENGTH):
        key_mask = mask & (np.arange(LENGTH) <= slot)[None]
        args = (tokens[:, slot], tokens[:, slot - 1], key_mask.sum(-1) - 1, jnp.int32(slot), key_mask, cache)
        hidden, cache = call(config, params, "decode", *args)
        np.testing.assert_allclose(hidden, full[:, slot], atol=2e-5)


@pytest.mark.parametrize("name", ["gpt2", "window on one layer", "qwen3", "shifted embeddings"])
def test_padding_inside_of_the_cache_changes_nothing(make, call, batch, name):
    """A second turn that is shorter in some rows: its block is left-padded, and positions go on without the padding."""
    config, (tokens, _) = CONFIGS[name], batch
    params = make(config)
    first, second = np.array([5, 3, 4]), np.array([2, 4, 1])
    columns = np.arange(9)[None]
    mask = np.where(columns < 5, columns >= 5 - first[:, None], columns >= 9 - second[:, None])
    filled = np.pad(mask[:, :5], ((0, 0), (0, 4)))
    _, cache = call(config, params, "prefill", tokens[:, :5], mask[:, :5], cache_length=9)
    before = tokens[:, 4]
    hidden, _ = call(config, params, "extend", tokens[:, 5:9], mask[:, 5:], before, first, jnp.int32(5), filled, cache)
    for row in range(3):
        alone = tokens[row : row + 1, :9][:, mask[row]]
        whole = call(config, params, "hidden", alone, np.ones_like(alone, bool))
        np.testing.assert_allclose(hidden[row], whole[0, -1], atol=2e-5)


def test_a_cache_of_bfloat16_stays_close(make, call, batch):
    tokens, mask = batch
    config = CONFIGS["llama"]
    params = make(config)
    filled = mask & (np.arange(LENGTH) <= 5)[None]
    found = []
    for dtype in (None, "bfloat16"):
        _, cache = call(config, params, "prefill", tokens[:, :5], mask[:, :5], cache_length=LENGTH, cache_dtype=dtype)
        assert cache.keys.dtype == cache.values.dtype == jnp.dtype(dtype or "float32")
        args = (tokens[:, 5], tokens[:, 4], filled.sum(-1) - 1, jnp.int32(5), filled, cache)
        found.append(call(config, params, "decode", *args)[0])
    assert 0 < np.abs(found[0] - found[1]).max() < 0.05


def test_a_window_hides_what_lies_further_back(make, call, batch):
    """With one layer and a window of 3, position 8 does not change with tokens before position 6, and does with 6."""
    tokens, _ = batch
    mask = np.ones_like(tokens, bool)
    config = replace(LLAMA, layers=1, window=3)
    params = make(config)

    def at_8(changed):
        moved = tokens.copy()
        moved[:, changed] = (moved[:, changed] + 1) % 48
        return np.asarray(call(config, params, "hidden", moved, mask))[:, 8]

    before = np.asarray(call(config, params, "hidden", tokens, mask))[:, 8]
    np.testing.assert_array_equal(at_8(slice(0, 6)), before)
    assert (np.abs(at_8(slice(6, 7)) - before).max(-1) > 1e-4).all()


def test_rotation_makes_attention_blind_to_where_a_text_begins(make, call, batch):
    """Scores depend on distances alone: tokens read as positions 0..4 and 7..11 give the same hidden state."""
    tokens, _ = batch
    params = make(LLAMA)
    mask = np.ones((3, 5), bool)
    full = call(LLAMA, params, "hidden", tokens[:, :5], mask)
    nothing = jnp.zeros((3, LENGTH), bool)
    _, cache = call(LLAMA, params, "prefill", tokens[:, :5], mask, cache_length=LENGTH)
    before = jnp.full(3, -1)
    hidden, _ = call(LLAMA, params, "extend", tokens[:, :5], mask, before, jnp.full(3, 7), jnp.int32(6), nothing, cache)
    np.testing.assert_allclose(hidden, full[:, 4], atol=2e-5)


def test_the_shift_adds_the_embedding_of_the_real_token_before(make, call):
    """By hand, padding in front and in the middle; the first token has none before it, unless it is named."""
    config = replace(GPT2, shift=True)
    params = make(config)
    table, share = params["embedding"], params["shift"]
    tokens, mask = np.array([[7, 5, 9, 7, 3]]), np.array([[False, True, True, False, True]])
    places = np.array([[0, 0, 1, 1, 2]])
    found = call(config, params, "embed", tokens, mask, places)[0]
    own = table[tokens[0]] + params["positions"][places[0]]
    for at, before in ((1, None), (2, 5), (4, 9)):
        wanted = own[at] + (0.0 if before is None else share * table[before])
        np.testing.assert_allclose(found[at], wanted, atol=1e-6)
    named = call(config, params, "embed", tokens, mask, places, np.array([11]))[0]
    np.testing.assert_allclose(named[1], own[1] + share * table[11], atol=1e-6)
    np.testing.assert_allclose(named[2:], found[2:], atol=1e-6)


def test_the_filler_of_the_vocabulary_has_no_probability(core):
    for tied in (True, False):
        model = core.model(vocab_size=19, vocab_multiple=16, tied=tied)
        table = split(model)[1]["trunk"]["embedding"] if tied else split(model)[1]["policy"]["kernel"]
        hidden = np.random.default_rng(0).normal(size=(2, 16)).astype(np.float32)
        logits = model.logits(hidden)
        assert logits.shape == (2, 32)
        np.testing.assert_allclose(logits[:, :19], hidden @ table[:19].T, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(jax.nn.softmax(logits)[:, 19:], 0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 4, "kv_heads": 3}, "--model.heads 4 must be a multiple of --model.kv-heads 3"),
        ({"mlp": "relu"}, "--model.mlp must be gelu_tanh, gelu or swiglu, not 'relu'"),
        ({"norm": "batch"}, "--model.norm must be layer or rms, not 'batch'"),
        ({"positions": "alibi"}, "--model.positions must be learned or rope, not 'alibi'"),
        ({"head_dim": 5}, "--model.positions rope needs an even --model.head-dim, not 5"),
        ({"window_layers": (1,)}, r"--model.window-layers \(1,\) needs --model.window, which is 0"),
        ({"window": 2, "window_layers": (3,)}, r"--model.window-layers \[3\] must be in \[0, --model.layers 3\)"),
        ({"window": -1}, "--model.window must be at least 0, not -1"),
        ({"positions": "learned", "rope": RopeConfig(theta=5e5)}, "--model.rope has no effect with --model.positions"),
    ],
)
def test_refused_combinations_name_their_flags(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(LLAMA, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scaling": "dynamic"}, "--model.rope.scaling must be none, linear, llama3 or yarn, not 'dynamic'"),
        ({"theta": 1.0}, "--model.rope.theta must be above 1, not 1.0"),
        ({"factor": 2.0}, "--model.rope.factor must be 1 with --model.rope.scaling none, not 2.0"),
        ({"scaling": "linear", "factor": 0.5}, "--model.rope.factor must be at least 1, not 0.5"),
        ({"scaling": "yarn", "factor": 2.0}, "--model.rope.scaling yarn needs --model.rope.original-length"),
        ({"low_frequency": 4.0}, "--model.rope.low-frequency 4.0 must be below --model.rope.high-frequency 4.0"),
    ],
)
def test_refused_rotations_name_their_flags(changes, message):
    with pytest.raises(ValueError, match=message):
        RopeConfig(**changes)


def test_a_config_read_from_json_is_the_config():
    rope = {"theta": 5e5, "scaling": "linear", "factor": 2.0}
    assert DecoderConfig(positions="rope", rope=rope) == DecoderConfig(positions="rope", rope=RopeConfig(**rope))
