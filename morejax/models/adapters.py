"""Adapters in and out in PEFT's form: adapter_config.json and adapter_model.safetensors beside a base model.

PEFT keeps A as `[rank, in]` and B as `[out, rank]` for every module it adapts. GPT-2 has queries, keys and values in
one module: their adapters become one of the rank of all together, with B block by block.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from morejax.models.decoder import Decoder
from morejax.models.decoder_config import DecoderConfig
from morejax.models.families import Entry, Family, family_of
from morejax.models.lora import adapters_of, is_adapter, is_trained
from morejax.models.safetensors_files import Stored, Tensor, read_header, write_file
from morejax.models.split import Params, flatten, split, unflatten

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."


def save_adapters(folder: str | Path, config: DecoderConfig, params: Params, *, base: str | Path) -> Path:
    """Write a model's adapters so that `peft.PeftModel.from_pretrained(model, folder)` loads them.

    Args:
      folder: made when missing.
      config: of the decoder.
      params: the trained parameters under `trunk` (and `policy`); frozen ones among them are left out.
      base: folder or hub id of the frozen model, as PEFT is to find it.

    Returns:
      the folder.

    Raises:
      ValueError: the decoder has no adapters, or no family can hold it.
    """
    if not config.lora.rank:
        raise ValueError("this model has no adapters: --model.lora.rank is 0")
    folder, family = Path(folder), family_of(config)
    folder.mkdir(parents=True, exist_ok=True)
    leaves = {name: np.asarray(leaf) for name, leaf in flatten(params).items()}
    found = dict(_adapter_tensors(family, config, leaves))
    kept = dict(_whole_tensors(family, config, leaves))
    tensors = {_PREFIX + name: values for name, values in (found | kept).items()}
    write_file(
        folder / WEIGHTS,
        [Tensor(name, values.shape, values.dtype, lambda v=values: v) for name, values in tensors.items()],
    )
    document = _peft_config(family, config, sorted({_module(name) for name in kept}), str(base))
    (folder / CONFIG).write_text(json.dumps(document, indent=2) + "\n")
    return folder


def _peft_config(family: Family, config: DecoderConfig, kept: list[str], base: str) -> dict[str, Any]:
    lora = config.lora
    joined = {".".join(name.split(".")[-2:]): count for name, count in _modules(family, config).items()}
    several = {name: count for name, count in joined.items() if count > 1}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(joined),
        "rank_pattern": {name: count * lora.rank for name, count in several.items()},
        "alpha_pattern": {name: count * lora.alpha for name, count in several.items()},
        "modules_to_save": kept or None,
        "fan_in_fan_out": family.model_type == "gpt2",
        "inference_mode": True,
    }


def _modules(family: Family, config: DecoderConfig) -> dict[str, int]:
    """Modules of a layer (`h.{}.attn.c_attn`) that are adapted, and how many matrices of theirs are."""
    modules = {}
    for entry in _kernels(family, config):
        used = [re.fullmatch(config.lora.targets, name) is not None for name in _matrices(entry)]
        counts = used if len(entry.theirs) == len(used) else [sum(used)]
        names = [name.removesuffix(".weight") for name in entry.theirs]
        modules |= {name: int(count) for name, count in zip(names, counts, strict=True) if count}
    return modules


def _kernels(family: Family, config: DecoderConfig) -> list[Entry]:
    gated = config.mlp == "swiglu"
    return [
        entry
        for entry in family.entries
        if entry.stacked and entry.ours.endswith("/kernel") and (gated or "/gate/" not in entry.ours)
    ]


def _matrices(entry: Entry) -> tuple[str, ...]:
    module = entry.ours.split("/")[-2]
    return ("q", "k", "v") if module == "qkv" else (module,)


def _adapter_tensors(
    family: Family, config: DecoderConfig, leaves: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    for entry in _kernels(family, config):
        path = entry.ours.removesuffix("/kernel")
        if f"{path}/lora_a" not in leaves:
            continue
        a, b = leaves[f"{path}/lora_a"], leaves[f"{path}/lora_b"]
        pairs = adapters_of(config, path.rpartition("/")[2], a, b)
        for layer in range(config.layers):
            yield from _layer(
                entry, layer, {name: pair and (pair[0][layer], pair[1][layer]) for name, pair in pairs.items()}, config
            )


def _layer(
    entry: Entry, layer: int, pairs: Mapping[str, Any], config: DecoderConfig
) -> Iterator[tuple[str, np.ndarray]]:
    names = [name.removesuffix(".weight") for name in entry.names(layer)]
    if len(names) == 1 and len(pairs) > 1:
        (name,) = names
        yield f"{name}.lora_A.weight", np.concatenate([pair[0].T for pair in pairs.values() if pair is not None])
        yield f"{name}.lora_B.weight", _blocks(pairs, config)
        return
    for name, pair in zip(names, pairs.values(), strict=True):
        if pair is not None:
            yield f"{name}.lora_A.weight", pair[0].T
            yield f"{name}.lora_B.weight", pair[1].T


def _blocks(pairs: Mapping[str, Any], config: DecoderConfig) -> np.ndarray:
    """`[out of all, rank of all]`: every adapter writes to its own matrix's outputs."""
    rank, width = config.lora.rank, config.heads * config.head_width  # GPT-2's three are alike
    used = [number for number, pair in enumerate(pairs.values()) if pair is not None]
    out = np.zeros((len(pairs) * width, len(used) * rank), np.float32)
    for place, (number, pair) in enumerate((n, p) for n, p in enumerate(pairs.values()) if p is not None):
        out[number * width : (number + 1) * width, place * rank : (place + 1) * rank] = pair[1].T
    return out


def _whole_tensors(
    family: Family, config: DecoderConfig, leaves: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    """Parameters that are trained as they are, under the names of the base model's."""
    for entry in family.entries:
        if entry.ours not in leaves or is_adapter(entry.ours) or not is_trained(entry.ours, config.lora):
            continue
        if len(entry.theirs) > 1:
            raise ValueError(f"PEFT has no place for {entry.ours}, trained whole: leave it out of --model.lora.trained")
        leaf = leaves[entry.ours][: config.vocab_size] if entry.vocabulary else leaves[entry.ours]
        for layer in range(config.layers if entry.stacked else 1):
            own = leaf[layer] if entry.stacked else leaf
            yield entry.names(layer)[0], own.T if entry.transposed else own


def _module(tensor: str) -> str:
    """`input_layernorm` of `model.layers.0.input_layernorm.weight`, `model.norm` of `model.norm.weight`.

    PEFT takes every module whose path ends so: `norm` alone would be all of them.
    """
    return ".".join(part for part in tensor.split(".")[-3:-1] if not part.isdecimal())


def load_adapters(folder: str | Path, config: DecoderConfig) -> Params:
    """The adapters of a folder in PEFT's form, as the trained parameters of this decoder.

    Args:
      folder: with adapter_config.json and adapter_model.safetensors.
      config: of the decoder, with rank, alpha and targets of the adapters.

    Raises:
      FileNotFoundError: the folder has no adapters.
      ValueError: a tensor is missing, or rank or shape are others.
    """
    folder = Path(folder)
    if not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(f"{folder}: no {WEIGHTS}")
    family, stored = family_of(config), read_header(folder / WEIGHTS)
    leaves = {}
    for entry in _kernels(family, config):
        used = [name for name in _matrices(entry) if re.fullmatch(config.lora.targets, name)]
        if used:
            layers = [_read_layer(entry, layer, used, stored, config) for layer in range(config.layers)]
            path = entry.ours.removesuffix("/kernel")
            for name, values in zip(("lora_a", "lora_b"), zip(*layers, strict=True), strict=True):
                leaves[f"{path}/{name}"] = jnp.asarray(np.stack(values), jnp.float32)
    return unflatten(leaves)


def _read_layer(
    entry: Entry, layer: int, used: list[str], stored: Mapping[str, Stored], config: DecoderConfig
) -> tuple[np.ndarray, np.ndarray]:
    names, matrices, rank = entry.names(layer), _matrices(entry), config.lora.rank
    if len(names) == len(matrices):
        wanted = [name for name, matrix in zip(names, matrices, strict=True) if matrix in used]
        pairs = [(_read(stored, name, "A", rank).T, _read(stored, name, "B", rank).T) for name in wanted]
        return np.concatenate([a for a, _ in pairs], 1), np.concatenate([b for _, b in pairs], 1)
    a, b = (_read(stored, names[0], kind, rank * len(used)) for kind in "AB")
    width = b.shape[0] // len(matrices)
    blocks = [
        b[matrices.index(name) * width : (matrices.index(name) + 1) * width, place * rank : (place + 1) * rank].T
        for place, name in enumerate(used)
    ]
    return a.T, np.concatenate(blocks, 1)


def _read(stored: Mapping[str, Stored], name: str, kind: str, rank: int) -> np.ndarray:
    tensor = f"{_PREFIX}{name.removesuffix('.weight')}.lora_{kind}.weight"
    if tensor not in stored:
        raise ValueError(f"{tensor}: missing, found {', '.join(sorted(stored)[:3])}, ...")
    values = stored[tensor].read()
    found = values.shape[0 if kind == "A" else 1]
    if found != rank:
        raise ValueError(f"{tensor}: found rank {found}, expected {rank} in {stored[tensor].file}")
    return values


def fresh_adapters(config: DecoderConfig, seed: int, shardings: Any = None) -> Params:
    """First adapters of a decoder, from one compiled program that makes nothing else.

    Args:
      config: of the decoder.
      seed: of A; B is 0.
      shardings: tree of them, as the result's; None takes one device.
    """

    def make() -> Params:
        leaves = flatten({"trunk": split(Decoder(config, nnx.Rngs(seed)))[1]})
        return unflatten({name: leaf for name, leaf in leaves.items() if is_adapter(name)})

    return jax.jit(make, out_shardings=shardings)()
