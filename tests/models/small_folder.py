"""A small random Qwen-style folder as the hub has them: weights, configuration, tokenizer, chat template."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from morejax.models import DecoderConfig, RopeConfig, hf

# Qwen's own.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEXTS = (
    "i want a cheap hotel in the north",
    "the phone number of the restaurant is",
    "a train to cambridge on monday",
)
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def small_tokenizer(vocab_size: int = 320) -> PreTrainedTokenizerFast:
    """A byte-level BPE of Qwen's make."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(_WORDS), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXTS * 3, trainer)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    made.chat_template = CHAT_TEMPLATE
    return made


def write_small_folder(folder: Path, *, spare_ids: int = 5, max_shard_bytes: int = 20_000) -> Path:
    """Two layers of width 16, four heads on two of keys; some ids more than the tokenizer has, as Qwen's models do."""
    tokenizer = small_tokenizer()
    config = DecoderConfig(
        vocab_size=len(tokenizer) + spare_ids,
        max_length=512,
        layers=2,
        width=16,
        heads=4,
        kv_heads=2,
        mlp="swiglu",
        mlp_width=24,
        norm="rms",
        positions="rope",
        rope=RopeConfig(theta=1e6),
        out_bias=False,
        mlp_bias=False,
    )
    rng = np.random.default_rng(0)
    noise = jax.tree.map(
        lambda leaf: jnp.asarray(0.1 * rng.normal(size=leaf.shape), leaf.dtype), hf.structure_of(config)[1]
    )
    params = jax.tree_util.tree_map_with_path(lambda path, leaf: leaf + 1.0 if path[-1].key == "scale" else leaf, noise)
    return hf.save_pretrained(folder, config, params, tokenizer=tokenizer, max_shard_bytes=max_shard_bytes)
