"""Hugging Face models in and out: a folder (or hub id) to parameters, and parameters to a folder that others load.

    pretrained = load_pretrained("Qwen/Qwen2.5-0.5B-Instruct")
    model = ActorCritic(pretrained.config, rngs=nnx.Rngs(0))      # its structure; its parameters are pretrained.params
    save_pretrained("out", pretrained.config, pretrained.params, tokenizer=load_tokenizer(pretrained.folder))

No torch is needed, and none is imported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding

from morejax.models.actor_critic import ActorCritic
from morejax.models.adapters import fresh_adapters
from morejax.models.decoder_config import DecoderConfig, LoraConfig
from morejax.models.families import FAMILIES, family_of
from morejax.models.hf_config import from_hf_config, to_hf_config
from morejax.models.hf_weights import match_tensors, place_parameter, tensors_of, used_entries
from morejax.models.lora import merge_adapters
from morejax.models.safetensors_files import Tensor, read_folder, read_header, write_file, write_folder
from morejax.models.split import Params, flatten, merge, split, unflatten
from morejax.sharding import parameter_spec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "HEADS",
    "Pretrained",
    "from_hf_config",
    "load_heads",
    "load_pretrained",
    "load_tokenizer",
    "local_folder",
    "logits_of",
    "save_pretrained",
    "to_hf_config",
]

# In a folder of its own: readers that take every *.safetensors beside config.json would stumble over it.
HEADS = Path("heads") / "heads.safetensors"
_PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.model", "merges.txt", "vocab.txt"]
_SHARD_BYTES = 5 * 10**9
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class Pretrained:
    """A model read from a folder."""

    config: DecoderConfig
    params: Params
    """Under `trunk` and (untied) `policy`: those of an `ActorCritic` without a critic."""
    folder: Path
    """Where it lies on this machine."""


def local_folder(source: str | Path, *, revision: str | None = None) -> Path:
    """The folder itself, or where the hub's client has put a copy of a hub id.

    Args:
      source: a folder, or an id such as `Qwen/Qwen2.5-0.5B`.
      revision: branch, tag or commit of a hub id.

    Raises:
      FileNotFoundError: neither a folder with a config.json nor a hub id that can be had.
    """
    folder = Path(source)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder}: no config.json; expected a folder in the Hugging Face form")
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=_PATTERNS))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        said = str(error).strip().partition("\n")[0]
        raise FileNotFoundError(f"{source}: no such folder, and not to be had from the hub ({said})") from error


def read_config(folder: Path) -> dict[str, Any]:
    """The content of `config.json`."""
    try:
        return json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: not JSON ({error})") from error


def load_pretrained(
    source: str | Path,
    *,
    vocab_size: int | None = None,
    mesh: Mesh | None = None,
    param_dtype: str = "float32",
    revision: str | None = None,
    seed: int = 0,
    **settings: Any,
) -> Pretrained:
    """Read a model; every device reads its own slices of the tensors, so that no host holds a full copy.

    Args:
      source: a folder, or a hub id.
      vocab_size: token ids wanted, when that is more than the checkpoint has; new rows are near the mean of the others.
      mesh: where parameters go, cut by the rules of `morejax.sharding`; None takes one device.
      param_dtype: type of the parameters: float32, or bfloat16 for those that are not trained.
      revision: of a hub id.
      seed: of fresh adapters.
      settings: fields of `DecoderConfig` that no checkpoint knows: dtype, scan, remat, vocab_multiple, lora.

    Raises:
      FileNotFoundError: there is no such model.
      ValueError: the family or one of its settings is not known, or a tensor is missing, too many or mis-shaped.
    """
    folder = local_folder(source, revision=revision)
    document = read_config(folder)
    known = from_hf_config(document, **settings)
    config = known if vocab_size is None else _extended(known, vocab_size, folder)
    family = FAMILIES[document["model_type"]]
    abstract = structure_of(replace(config, lora=LoraConfig()))[1]
    tensors = match_tensors(family, abstract, read_folder(folder), known.vocab_size, config)
    leaves = flatten(abstract)
    placed = {
        entry.ours: place_parameter(
            entry,
            tensors[entry.ours],
            leaves[entry.ours].shape,
            config,
            jnp.dtype(param_dtype),
            _sharding(mesh, entry.ours, leaves[entry.ours].shape),
        )
        for entry in used_entries(family, leaves)
    }
    adapters = flatten(_fresh_adapters(config, seed, mesh)) if config.lora.rank else {}
    return Pretrained(config, unflatten(placed | adapters), folder)


def _fresh_adapters(config: DecoderConfig, seed: int, mesh: Mesh | None) -> Params:
    leaves = flatten(jax.eval_shape(lambda: fresh_adapters(config, seed)))
    shardings = {name: _sharding(mesh, name, leaf.shape) for name, leaf in leaves.items()}
    return fresh_adapters(config, seed, unflatten(shardings))


def structure_of(config: DecoderConfig) -> tuple[nnx.GraphDef, Params]:
    """Graph and abstract parameters of a model without a critic."""
    return split(nnx.eval_shape(lambda: ActorCritic(config, rngs=nnx.Rngs(0))))


def _extended(known: DecoderConfig, vocab_size: int, folder: Path) -> DecoderConfig:
    if vocab_size < known.vocab_size:
        raise ValueError(f"vocab_size {vocab_size}: {folder} has {known.vocab_size} token ids, and none is left out")
    return replace(known, vocab_size=vocab_size)


def _sharding(mesh: Mesh | None, name: str, shape: tuple[int, ...]) -> jax.sharding.Sharding:
    if mesh is None:
        return SingleDeviceSharding(jax.devices()[0])
    return NamedSharding(mesh, parameter_spec(name, shape, mesh))


def save_pretrained(
    folder: str | Path,
    config: DecoderConfig,
    params: Params,
    *,
    tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
    heads: Params | None = None,
    heads_about: Mapping[str, Any] | None = None,
    generation: Mapping[str, Any] | None = None,
    dtype: str = "float32",
    max_shard_bytes: int = _SHARD_BYTES,
) -> Path:
    """Write a folder that plain `transformers` loads, and so what reads its folders.

    Args:
      folder: made when missing; must not hold a model yet.
      config: of the decoder.
      params: under `trunk` and (untied) `policy`; anything else is left out. Adapters are merged into the weights
        (`adapters.save_adapters` writes them alone).
      tokenizer: object, or folder with one; its chat template goes along.
      heads: what has no place in the family's form, e.g. the critic: written to heads/heads.safetensors.
      heads_about: what is needed to build them again, written beside as heads.json.
      generation: entries of generation_config.json beyond the token ids, e.g. temperature.
      dtype: of the tensors: float32, bfloat16 or float16.
      max_shard_bytes: larger models are cut into several files.

    Returns:
      the folder.

    Raises:
      FileExistsError: the folder holds a model.
      ValueError: no family can hold this decoder.
    """
    folder, family = Path(folder), family_of(config)
    if (folder / "config.json").exists():
        raise FileExistsError(f"{folder} holds a model already: name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(tokenizer, (str, Path)):
        tokenizer = load_tokenizer(tokenizer)
    tokens = {name: getattr(tokenizer, name, None) for name in _TOKENS}
    model = {name: part for name, part in params.items() if name in ("trunk", "policy")}
    config, model = merge_adapters(config, model)
    write_folder(folder, list(tensors_of(family, model, config, jnp.dtype(dtype))), max_shard_bytes)
    if heads:
        _save_heads(folder, heads, heads_about or {})
    if tokenizer is not None:
        tokenizer.save_pretrained(str(folder))
    named = {name: value for name, value in tokens.items() if value is not None}
    _write_json(folder / "generation_config.json", named | dict(generation or {}))
    # Last: a folder with a config.json is a whole one.
    _write_json(folder / "config.json", to_hf_config(config, dtype=dtype, tokens=tokens))
    return folder


def _save_heads(folder: Path, heads: Params, about: Mapping[str, Any]) -> None:
    (folder / HEADS).parent.mkdir(exist_ok=True)
    leaves = {name: np.asarray(leaf) for name, leaf in flatten(heads).items()}
    write_file(
        folder / HEADS,
        [Tensor(name, leaf.shape, leaf.dtype, lambda leaf=leaf: leaf) for name, leaf in leaves.items()],
    )
    _write_json((folder / HEADS).with_suffix(".json"), dict(about))


def load_heads(folder: str | Path) -> Params:
    """The heads that `save_pretrained` wrote beside a model; nothing where it wrote none."""
    file = Path(folder) / HEADS
    if not file.is_file():
        return {}
    return unflatten({name: jnp.asarray(stored.read()) for name, stored in read_header(file).items()})


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n")


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer (and chat template) of a local folder; no hub is asked.

    Raises:
      FileNotFoundError: the folder has none.
    """
    folder = Path(folder)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise FileNotFoundError(f"{folder}: no tokenizer (tokenizer.json, tokenizer.model or vocab.json)")
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # tokenizer.json as it is: what AutoTokenizer takes for the family's class may have a normalizer of its own.
    kind = PreTrainedTokenizerFast if (folder / "tokenizer.json").is_file() else AutoTokenizer
    return kind.from_pretrained(str(folder), local_files_only=True)


def logits_of(source: str | Path, ids: Any, mask: Any = None) -> jax.Array:
    """Logits of a folder's model, to check it in one call.

    Args:
      source: a folder, or a hub id.
      ids: i32[B, T].
      mask: bool[B, T], True on real tokens; positions count real tokens only. None: all are real.

    Returns:
      f32[B, T, V].
    """
    pretrained = load_pretrained(source)
    graphdef = structure_of(pretrained.config)[0]
    tokens = jnp.asarray(np.asarray(ids), jnp.int32)
    real = jnp.ones(tokens.shape, bool) if mask is None else jnp.asarray(np.asarray(mask), bool)

    @jax.jit
    def forward(params: Params) -> jax.Array:
        model = merge(graphdef, params)
        return model.logits(model.hidden(tokens, real))

    return forward(pretrained.params)
