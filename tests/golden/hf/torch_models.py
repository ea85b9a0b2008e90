"""Small random models of `transformers` on torch, one for each thing that a decoder must agree on."""

from __future__ import annotations

import numpy as np
import torch
import transformers

_LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16}
_WINDOW = {"use_sliding_window": True, "sliding_window": 5}
# Name -> (model type, what differs from the small model of that family).
MODELS = {
    "gpt2": ("gpt2", {}),
    "gpt2 untied, exact gelu": ("gpt2", {"tie_word_embeddings": False, "activation_function": "gelu", "n_inner": 40}),
    "llama": ("llama", {"rope_parameters": _LLAMA3 | {"original_max_position_embeddings": 16}}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4}),
    "llama, linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}}),
    "smollm2": ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True, "max_window_layers": 1} | _WINDOW),
    "qwen2, all windows": ("qwen2", {"max_window_layers": 0} | _WINDOW),
    "qwen2, yarn": ("qwen2", {"rope_parameters": _YARN}),
    "qwen3": ("qwen3", {"head_dim": 6}),
    "qwen3, yarn, biases, window": (
        "qwen3",
        {"head_dim": 12, "rope_parameters": _YARN | {"attention_factor": 1.3}, "attention_bias": True}
        | {"tie_word_embeddings": True, "layer_types": ["sliding_attention", "full_attention"]}
        | _WINDOW,
    ),
}


def random_model(name: str, *, width: int = 32, vocab: int = 97):
    """A model of `MODELS` in evaluation mode; its weights are large enough for every part to matter."""
    kind, changes = MODELS[name]
    if kind == "gpt2":
        sizes = {"n_positions": 32, "n_embd": width, "n_layer": 2, "n_head": 4}
    else:
        sizes = {"hidden_size": width, "intermediate_size": width + width // 2, "max_position_embeddings": 64}
        sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    tokens = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = transformers.AutoConfig.for_model(kind, **({"vocab_size": vocab} | sizes | tokens | changes))
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = 0.3 * torch.randn_like(parameter)
            parameter.copy_(noise if parameter.ndim > 1 else parameter + noise)
    return model


def logits(model, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """f32[B, T, V]; positions count real tokens only."""
    positions = np.maximum(np.cumsum(mask, -1) - 1, 0)
    ids, mask, positions = (torch.tensor(x.astype(np.int64)) for x in (ids, mask, positions))
    with torch.no_grad():
        return model(ids, attention_mask=mask, position_ids=positions).logits.float().numpy()
