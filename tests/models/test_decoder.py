"""The decoder: causal, blind to padding, the same scanned, unrolled, rematerialised and token by token."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from morejax.models import Decoder, DecoderConfig, merge, split
from morejax.models.attention import causal_bias, token_positions
from morejax.models.dropout import Dropout

CONFIG = DecoderConfig(vocab_size=48, max_length=16, layers=2, width=16, heads=2)
LENGTH = 9


@pytest.fixture(scope="module")
def params(core):
    abstract = nnx.eval_shape(lambda: Decoder(CONFIG, nnx.Rngs(0)))
    return core.random_params(split(abstract)[1], scale=0.2)


@pytest.fixture(scope="module")
def call(core):
    """Run a method of a decoder of this config, compiled."""

    @cache
    def compiled(config, method, **static):
        graphdef, _ = split(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0))))

        def function(params, args):
            return getattr(merge(graphdef, params), method)(*args, **static)

        return jax.jit(function, compiler_options=core.fast_compile())

    def go(config, params, method, *args, **static):
        return compiled(config, method, **static)(params, args)

    return go


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    mask = np.arange(LENGTH)[None] >= np.array([0, 3, 5])[:, None]
    return rng.integers(0, 48, (3, LENGTH)), mask


def test_positions_and_bias_by_hand():
    mask = jnp.array([[False, False, True, True], [True, True, True, False]])
    np.testing.assert_array_equal(token_positions(mask), [[0, 0, 0, 1], [0, 1, 2, 2]])
    sees = np.asarray(causal_bias(mask)[:, 0] == 0)
    np.testing.assert_array_equal(sees[0], [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]])
    np.testing.assert_array_equal(sees[1], [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0]])


def test_a_position_sees_nothing_behind_it(params, call, batch):
    tokens, mask = batch
    changed = tokens.copy()
    changed[:, 6:] = (changed[:, 6:] + 7) % 48
    before, after = (call(CONFIG, params, "hidden", t, mask) for t in (tokens, changed))
    early = mask & (np.arange(LENGTH) < 6)[None]
    np.testing.assert_array_equal(np.asarray(before)[early], np.asarray(after)[early])
    assert (np.abs(before - after)[:, 6:].max(-1) > 1e-3).all()


def test_left_padding_changes_no_hidden_state(params, call, batch):
    """The same tokens with 0, 3 and 5 columns of (arbitrary) padding before them; all rows stay finite."""
    tokens, mask = batch
    hidden = call(CONFIG, params, "hidden", tokens, mask)
    assert np.isfinite(hidden).all()
    for row, pad in enumerate((0, 3, 5)):
        alone = call(CONFIG, params, "hidden", tokens[row : row + 1, pad:], mask[row : row + 1, pad:])
        np.testing.assert_allclose(hidden[row, pad:], alone[0], atol=1e-5)


@pytest.mark.parametrize("scan", [False, True])
def test_prefill_and_decode_equal_the_full_forward(params, call, batch, scan):
    """Prompts of 5 columns, of 5, 2 and 1 real tokens, then four tokens one at a time."""
    tokens, mask = batch
    mask = mask | (np.arange(LENGTH) >= 4)[None]
    config = replace(CONFIG, scan=scan)
    full = call(CONFIG, params, "hidden", tokens, mask)
    hidden, cache = call(config, params, "prefill", tokens[:, :5], mask[:, :5], cache_length=LENGTH)
    np.testing.assert_allclose(hidden, full[:, 4], atol=1e-5)
    assert cache.keys.shape == (2, 3, 2, LENGTH, 8)
    lengths = mask[:, :5].sum(-1)
    for step in range(4):
        key_mask = mask & (np.arange(LENGTH) <= 5 + step)[None]
        args = (tokens[:, 5 + step], tokens[:, 4 + step], lengths + step, jnp.int32(5 + step), key_mask, cache)
        hidden, cache = call(config, params, "decode", *args)
        np.testing.assert_allclose(hidden, full[:, 5 + step], atol=1e-5)


def loss_and_grad(core, config, params, batch):
    graphdef, _ = split(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0))))
    tokens, mask = batch

    def loss(params):
        decoder = merge(graphdef, params)
        logits = decoder.logits(decoder.hidden(tokens, mask))
        return jnp.where(mask[..., None], jnp.sin(logits), 0.0).sum()

    return jax.jit(jax.value_and_grad(loss), compiler_options=core.fast_compile())(params)


@pytest.fixture(scope="module")
def plain(core, params, batch):
    return loss_and_grad(core, CONFIG, params, batch)


@pytest.mark.parametrize(("scan", "remat"), [(True, "none"), (False, "dots"), (False, "full"), (True, "full")])
def test_scan_and_rematerialisation_change_no_gradient(core, params, batch, plain, scan, remat):
    value, grad = loss_and_grad(core, replace(CONFIG, scan=scan, remat=remat), params, batch)
    np.testing.assert_allclose(value, plain[0], rtol=1e-5)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(grad), jax.tree.leaves(plain[1]), strict=True):
        scale = max(float(jnp.abs(b).max()), 1e-3)
        np.testing.assert_allclose(a, b, atol=1e-5 * scale, rtol=0, err_msg=jax.tree_util.keystr(path))


def test_dropout_zeroes_its_share_and_keeps_the_mean():
    ones = jnp.ones((200, 500))
    found = np.asarray(Dropout(jax.random.key(0), 0.25)(ones))
    assert set(np.unique(found)) == {np.float32(0), np.float32(1 / 0.75)}
    # 100,000 draws: the standard deviation of their share is 0.0014.
    assert (found == 0).mean() == pytest.approx(0.25, abs=0.006)
    again, elsewhere = (np.asarray(Dropout(jax.random.key(0), 0.25).at(place)(ones)) for place in (1, 2))
    assert not np.array_equal(again, elsewhere)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_dropout_is_the_same_noise_scanned_and_rematerialised_and_stays_causal(core, params, batch, call, remat):
    """One key, one noise, however the layers are run; a draw differs from no dropout, and from another draw."""

    def dropped(config, key):
        graphdef, _ = split(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0))))

        def states(params, key):
            return merge(graphdef, params).hidden(*batch, dropout=Dropout(key, 0.3))

        return np.asarray(jax.jit(states, compiler_options=core.fast_compile())(params, jax.random.key(key)))

    unrolled, scanned = (dropped(replace(CONFIG, scan=scan, remat=remat), 0) for scan in (False, True))
    np.testing.assert_allclose(unrolled, scanned, atol=1e-5)
    assert np.abs(unrolled - dropped(CONFIG, 1)).max() > 0.1
    assert np.abs(unrolled - np.asarray(call(CONFIG, params, "hidden", *batch))).max() > 0.1
    # Causal with it, too: the last token of the second row changes its own state alone.
    tokens, mask = batch
    changed = tokens.copy()
    changed[1, -1] = (changed[1, -1] + 1) % CONFIG.vocab_size
    graphdef, _ = split(nnx.eval_shape(lambda: Decoder(CONFIG, nnx.Rngs(0))))
    other = merge(graphdef, params).hidden(changed, mask, dropout=Dropout(jax.random.key(0), 0.3))
    np.testing.assert_allclose(np.asarray(other)[:, :-1][mask[:, :-1]], unrolled[:, :-1][mask[:, :-1]], atol=1e-5)
    assert np.abs(np.asarray(other)[1, -1] - unrolled[1, -1]).max() > 0.1


def test_bfloat16_stays_close_and_keeps_float32_outside(params, call, batch):
    """bfloat16 has 8 bits: after two blocks the normalised states (std 1) agree to 0.1, on average to 0.01."""
    tokens, mask = batch
    config = replace(CONFIG, dtype="bfloat16")
    exact, rough = (np.asarray(call(c, params, "hidden", tokens, mask))[mask] for c in (CONFIG, config))
    assert rough.dtype == np.float32
    assert 0 < np.abs(exact - rough).mean() < 0.01
    assert np.abs(exact - rough).max() < 0.1
    logits = [call(c, params, "logits", exact) for c in (CONFIG, config)]
    assert logits[1].dtype == jnp.float32
    assert np.abs(logits[0] - logits[1]).max() < 0.02 * np.abs(logits[0]).max()


def test_parameters_are_stacked_float32_whatever_is_computed_in():
    for changes in ({}, {"scan": True}, {"dtype": "bfloat16"}):
        _, params = split(nnx.eval_shape(partial(lambda c: Decoder(c, nnx.Rngs(0)), replace(CONFIG, **changes))))
        assert params["blocks"]["up"]["kernel"].shape == (2, 16, 64)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_logits_are_tied_to_the_embedding(params, call):
    hidden = np.eye(16, dtype=np.float32)[None]
    np.testing.assert_allclose(call(CONFIG, params, "logits", hidden)[0], params["embedding"].T, rtol=1e-5)


def test_layers_start_from_different_numbers():
    kernel = jax.jit(lambda: split(Decoder(CONFIG, nnx.Rngs(0)))[1]["blocks"]["up"]["kernel"])()
    assert not np.allclose(kernel[0], kernel[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 15}, "--model.width 15 must be a multiple of --model.heads 2"),
        ({"dtype": "float16"}, "--model.dtype must be float32 or bfloat16, not 'float16'"),
        ({"remat": "some"}, "--model.remat must be none, dots or full, not 'some'"),
        ({"vocab_size": 0}, "--model.vocab-size must be at least 1, not 0"),
        ({"max_length": -1}, "--model.max-length must be at least 1, not -1"),
    ],
)
def test_wrong_settings_name_their_flag(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)
