"""LoRA: which parameters are trained, and the weights with the adapters merged into them.

The frozen rest is one set of arrays, `TrainState.frozen`: the policy reads it, a critic with adapters of its own
(`critic.kind = base`) reads it, and it is the parameters of a reference that is the model before training.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from morejax.models.decoder_config import DecoderConfig, LoraConfig
from morejax.models.split import Params, flatten, unflatten

_ADAPTER = re.compile(r"/lora_[ab]$")
_CRITIC_TRUNK = "value/trunk/"


def is_adapter(name: str) -> bool:
    """Is this parameter (by its path) a part of an adapter?"""
    return _ADAPTER.search(name) is not None


def is_trained(name: str, lora: LoraConfig) -> bool:
    """Is this parameter trained: an adapter, the critic's own, or named by `LoraConfig.trained`?"""
    if is_adapter(name) or name.startswith("value/"):
        return True
    return bool(lora.trained) and re.search(lora.trained, name) is not None


def partition(params: Params, lora: LoraConfig) -> tuple[Params, Params]:
    """Parameters that are trained, and the frozen others.

    A critic with adapters of its own reads the policy's frozen weights: its copy of them is left out.

    Raises:
      ValueError: `LoraConfig.trained` names nothing.
    """
    leaves = flatten(params)
    if any(is_adapter(name) and name.startswith(_CRITIC_TRUNK) for name in leaves):
        leaves = {name: leaf for name, leaf in leaves.items() if is_adapter(name) or not name.startswith(_CRITIC_TRUNK)}
    trained = {name: leaf for name, leaf in leaves.items() if is_trained(name, lora)}
    if lora.trained and not any(re.search(lora.trained, name) for name in trained if not is_adapter(name)):
        known = ", ".join(sorted(leaves)[:5])
        raise ValueError(f"--model.lora.trained {lora.trained!r} is found in no parameter ({known}, ...)")
    return unflatten(trained), unflatten({name: leaf for name, leaf in leaves.items() if name not in trained})


def merge_adapters(config: DecoderConfig, params: Params) -> tuple[DecoderConfig, Params]:
    """The same model without adapters: W + (alpha / rank) A B in the place of W.

    Args:
      config: of the decoder.
      params: of the whole model, frozen ones included (`whole`), `trunk` and perhaps others.

    Returns:
      The config without adapters, and the parameters, W in its own type.
    """
    if not config.lora.rank:
        return config, params
    leaves = flatten(params)
    merged = {name: leaf for name, leaf in leaves.items() if not is_adapter(name)}
    for name in [name for name in leaves if name.endswith("/lora_a")]:
        path = name.removesuffix("/lora_a")
        change = _delta(config, path.rpartition("/")[2], leaves[name], leaves[f"{path}/lora_b"])
        kernel = leaves[f"{path}/kernel"]
        merged[f"{path}/kernel"] = (kernel.astype(jnp.float32) + change).astype(kernel.dtype)
    return replace(config, lora=LoraConfig()), unflatten(merged)


def parts_of(config: DecoderConfig, module: str) -> dict[str, int]:
    """Matrices (and their columns) that stand side by side in one kernel of a block, by the module's name."""
    queries, keys = config.heads * config.head_width, config.key_heads * config.head_width
    hidden, width = config.hidden_width, config.width
    return {
        "qkv": {"q": queries, "k": keys, "v": keys},
        "out": {"out": width},
        "gate": {"gate": hidden},
        "up": {"up": hidden},
        "down": {"down": width},
    }[module]


def adapters_of(config: DecoderConfig, module: str, a: Any, b: Any) -> dict[str, tuple[Any, Any] | None]:
    """Every matrix's own `A [L, in, rank]` and `B [L, rank, out]`, None where it has no adapter."""
    found: dict[str, tuple[Any, Any] | None] = {}
    inside = outside = 0
    for name, width in parts_of(config, module).items():
        if not re.fullmatch(config.lora.targets, name):
            found[name] = None
            continue
        rank = config.lora.rank
        found[name] = a[..., inside : inside + rank], b[..., outside : outside + width]
        inside, outside = inside + rank, outside + width
    return found


def _delta(config: DecoderConfig, module: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """(alpha / rank) A B of all matrices of a kernel, `[L, in, columns]` in float32."""
    widths, blocks = parts_of(config, module), []
    for name, pair in adapters_of(config, module, a, b).items():
        if pair is None:
            blocks.append(jnp.zeros((*a.shape[:-1], widths[name]), jnp.float32))
            continue
        first, second = (leaf.astype(jnp.float32) for leaf in pair)
        # Not at TF32's precision: this is what is handed on.
        blocks.append(jnp.matmul(first, second, precision="highest"))
    return jnp.concatenate(blocks, axis=-1) * (config.lora.alpha / config.lora.rank)
