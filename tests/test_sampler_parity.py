"""Greedy replies equal those of torch `transformers.generate`, token for token, on random models."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import transformers
from flax import nnx

from morejax.models import ActorCritic, DecoderConfig, hf, split
from morejax.rollout import SamplerConfig, compile_sampler

torch = pytest.importorskip("torch", reason="needs the parity extra")
pytestmark = pytest.mark.parity

ROWS, CONTEXT, STEPS, EOS, PAD = 12, 10, 24, 1, 0
SIZE = {"vocab_size": 96, "max_length": 40, "layers": 3, "width": 32, "heads": 4}
FAMILIES = {
    "gpt2": DecoderConfig(**SIZE),
    "qwen3": DecoderConfig(
        **SIZE,
        kv_heads=2,
        head_dim=8,
        mlp="swiglu",
        mlp_width=48,
        norm="rms",
        norm_eps=1e-6,
        positions="rope",
        qk_norm=True,
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
    ),
}
SETTINGS = {"plain": {}, "penalty": {"repetition_penalty": 1.3}}


@pytest.fixture(scope="module", autouse=True)
def quiet():
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@pytest.fixture(scope="module", params=FAMILIES)
def pair(core, request, tmp_path_factory):
    """Our model and theirs; random weights large enough that replies end, repeat and differ."""
    config = FAMILIES[request.param]
    graphdef, abstract = split(nnx.eval_shape(lambda: ActorCritic(config, rngs=nnx.Rngs(0))))
    params = core.random_params(abstract, seed=3, scale=0.25)
    folder = tmp_path_factory.mktemp("model")
    hf.save_pretrained(folder / "export", config, params)
    return graphdef, params, transformers.AutoModelForCausalLM.from_pretrained(folder / "export").eval()


@pytest.mark.parametrize("settings", SETTINGS)
def test_greedy_is_that_of_transformers(pair, settings):
    """Left-padded prompts of 3 to 10 tokens; rows end at the end token or after 24."""
    graphdef, params, model = pair
    rng = np.random.default_rng(0)
    mask = np.arange(CONTEXT)[None] >= CONTEXT - rng.integers(3, CONTEXT + 1, ROWS)[:, None]
    # No padding token among the words: theirs counts it as seen.
    tokens = np.where(mask, rng.integers(2, 96, (ROWS, CONTEXT)), PAD).astype(np.int32)
    ours = compile_sampler(graphdef, SamplerConfig(STEPS, 0.0, EOS, PAD, **SETTINGS[settings]))
    found = np.asarray(ours(params, tokens, mask, jax.random.key(0)).tokens)
    with torch.inference_mode():
        expected = model.generate(
            torch.from_numpy(tokens.astype(np.int64)),
            attention_mask=torch.from_numpy(mask),
            max_new_tokens=STEPS,
            do_sample=False,
            eos_token_id=EOS,
            pad_token_id=PAD,
            **SETTINGS[settings],
        ).numpy()[:, CONTEXT:]
    np.testing.assert_array_equal(found[:, : expected.shape[1]], expected)
    assert (found[:, expected.shape[1] :] == PAD).all()
    assert len({tuple(row) for row in found}) > ROWS // 2
