"""`config.json` of Hugging Face to `DecoderConfig` and back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

# transformers serves for configurations and tokenizers only; its advice to install PyTorch is of no use here.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

from morejax.models.decoder_config import DecoderConfig, RopeConfig
from morejax.models.families import FAMILIES, family_of

# Ours and theirs, both ways.
_GPT2_FIELDS = {
    "vocab_size": "vocab_size",
    "max_length": "n_positions",
    "layers": "n_layer",
    "width": "n_embd",
    "heads": "n_head",
    "norm_eps": "layer_norm_epsilon",
    "tied": "tie_word_embeddings",
}
_LLAMA_FIELDS = {
    "vocab_size": "vocab_size",
    "max_length": "max_position_embeddings",
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "mlp_width": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "tied": "tie_word_embeddings",
}
_ROPE_FIELDS = {
    "theta": "rope_theta",
    "scaling": "rope_type",
    "factor": "factor",
    "original_length": "original_max_position_embeddings",
    "low_frequency": "low_freq_factor",
    "high_frequency": "high_freq_factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "attention_factor": "attention_factor",
}
# What each scaling reads.
_ROPE_READS = {
    "none": ("theta",),
    "linear": ("theta", "factor"),
    "llama3": ("theta", "factor", "original_length", "low_frequency", "high_frequency"),
    "yarn": ("theta", "factor", "original_length", "beta_fast", "beta_slow", "attention_factor"),
}
_GELU = {"gelu_tanh": "gelu_new", "gelu": "gelu"}
_GELU_READ = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu": "gelu"}


def from_hf_config(config: Mapping[str, Any], **settings: Any) -> DecoderConfig:
    """The decoder that a `config.json` describes.

    Args:
      config: its content; what it leaves out has the default that `transformers` gives it.
      settings: fields of `DecoderConfig` that no checkpoint knows (dtype, scan, remat, vocab_multiple), or a shorter
        `max_length` where positions are rotated.

    Raises:
      ValueError: an unknown family, or one of its settings that a `DecoderConfig` cannot express; names it.
    """
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        raise ValueError(f"config.json: model_type {model_type!r} is not one of {', '.join(FAMILIES)}")
    _rope_kind(config)  # before transformers finds its own words for it
    from transformers import AutoConfig

    rest = {name: value for name, value in config.items() if name != "model_type"}
    filled = AutoConfig.for_model(model_type, **rest).to_dict()
    fields = _from_gpt2(filled) if model_type == "gpt2" else _from_llama(filled, config)
    return DecoderConfig(**(fields | settings))


def _from_gpt2(theirs: Mapping[str, Any]) -> dict[str, Any]:
    _refuse(theirs, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    _expect("activation_function", theirs["activation_function"], tuple(_GELU_READ))
    fields = {ours: theirs[name] for ours, name in _GPT2_FIELDS.items()}
    fields |= {"mlp": _GELU_READ[theirs["activation_function"]], "mlp_width": theirs["n_inner"] or 4 * theirs["n_embd"]}
    return fields


def _from_llama(theirs: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    kind = theirs["model_type"]
    _expect("hidden_act", theirs["hidden_act"], ("silu", "swish"))
    fields: dict[str, Any] = {ours: theirs[name] for ours, name in _LLAMA_FIELDS.items()}
    bias = bool(theirs.get("attention_bias", False))
    return fields | {
        "head_dim": theirs.get("head_dim") or theirs["hidden_size"] // theirs["num_attention_heads"],
        "norm": "rms",
        "positions": "rope",
        "mlp": "swiglu",
        "qkv_bias": kind == "qwen2" or bias,
        "out_bias": kind != "qwen2" and bias,
        "mlp_bias": bool(theirs.get("mlp_bias", False)),
        "qk_norm": kind == "qwen3",
        "rope": _from_rope(theirs, given),
        **_from_window(theirs),
    }


def _rope_kind(given: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Scaling and numbers of `rope_parameters`, or of `rope_theta` and `rope_scaling` as older versions write them."""
    found = dict(given.get("rope_parameters") or {}) | dict(given.get("rope_scaling") or {})
    kind = found.get("rope_type") or found.get("type") or "default"
    kind = "none" if kind == "default" else kind
    _expect("rope_type", kind, tuple(_ROPE_READS))
    _refuse(found, partial_rotary_factor=1.0, truncate=True, mscale=None, mscale_all_dim=None)
    return kind, found


def _from_rope(theirs: Mapping[str, Any], given: Mapping[str, Any]) -> RopeConfig:
    kind, found = _rope_kind(given)
    found.setdefault("rope_theta", given.get("rope_theta") or (theirs.get("rope_parameters") or {}).get("rope_theta"))
    values = {ours: found.get(_ROPE_FIELDS[ours]) for ours in _ROPE_READS[kind]}
    if values.get("original_length", 1) is None:
        values["original_length"] = theirs["max_position_embeddings"]
    return RopeConfig(scaling=kind, **{name: value for name, value in values.items() if value is not None})


def _from_window(theirs: Mapping[str, Any]) -> dict[str, Any]:
    kinds, window = theirs.get("layer_types") or (), theirs.get("sliding_window")
    for kind in kinds:
        _expect("layer_types", kind, ("full_attention", "sliding_attention"))
    layers = tuple(index for index, kind in enumerate(kinds) if kind == "sliding_attention")
    if not window or not layers:
        return {}
    return {"window": window, "window_layers": () if len(layers) == len(kinds) else layers}


def _expect(name: str, found: Any, wanted: tuple[str, ...]) -> None:
    if found not in wanted:
        raise ValueError(f"config.json: {name} {found!r} is not supported, expected {' or '.join(wanted)}")


def _refuse(theirs: Mapping[str, Any], **only: Any) -> None:
    for name, value in only.items():
        if theirs.get(name, value) != value:
            raise ValueError(f"config.json: {name} {theirs[name]!r} is not supported, expected {value!r}")


def to_hf_config(config: DecoderConfig, *, dtype: str = "float32", tokens: Mapping[str, Any] | None = None) -> dict:
    """The content of a `config.json` that `transformers` (and what reads its folders) builds this decoder from.

    Args:
      config: of the decoder.
      dtype: of the tensors beside it.
      tokens: bos_token_id, eos_token_id, pad_token_id.

    Raises:
      ValueError: no family can express this decoder.
    """
    family = family_of(config)
    theirs = {"model_type": family.model_type, "architectures": [family.architecture], "dtype": dtype}
    theirs |= {"torch_dtype": dtype, **_NO_TOKENS, **(tokens or {})}
    return theirs | (_to_gpt2(config) if family.model_type == "gpt2" else _to_llama(config, family.model_type))


_NO_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def _to_gpt2(config: DecoderConfig) -> dict[str, Any]:
    fields = {name: getattr(config, ours) for ours, name in _GPT2_FIELDS.items()}
    dropout = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
    return fields | dropout | {"activation_function": _GELU[config.mlp], "n_inner": config.hidden_width}


def _to_llama(config: DecoderConfig, kind: str) -> dict[str, Any]:
    fields: dict[str, Any] = {name: getattr(config, ours) for ours, name in _LLAMA_FIELDS.items()}
    fields |= {"num_key_value_heads": config.key_heads, "intermediate_size": config.hidden_width}
    fields |= {"head_dim": config.head_width, "hidden_act": "silu", "attention_dropout": 0.0}
    if kind != "qwen2":
        fields["attention_bias"] = config.qkv_bias
    if kind == "llama":
        fields["mlp_bias"] = config.mlp_bias
    else:
        fields |= _to_window(config)
    return fields | _to_rope(config.rope)


def _to_window(config: DecoderConfig) -> dict[str, Any]:
    windowed = [config.windowed(layer) for layer in range(config.layers)]
    kinds = ["sliding_attention" if is_windowed else "full_attention" for is_windowed in windowed]
    return {
        "use_sliding_window": any(windowed),
        "sliding_window": config.window or None,
        "max_window_layers": windowed.index(True) if any(windowed) else config.layers,
        "layer_types": kinds,
    }


def _to_rope(rope: RopeConfig) -> dict[str, Any]:
    """As today's versions read it, and as older ones and other tools do."""
    values = {_ROPE_FIELDS[ours]: getattr(rope, ours) for ours in _ROPE_READS[rope.scaling]}
    if not rope.attention_factor:
        values.pop("attention_factor", None)
    parameters = {"rope_type": "default" if rope.scaling == "none" else rope.scaling, **values}
    scaling = {name: value for name, value in parameters.items() if name != "rope_theta"}
    return {
        "rope_theta": rope.theta,
        "rope_parameters": parameters,
        "rope_scaling": None if rope.scaling == "none" else scaling,
    }
