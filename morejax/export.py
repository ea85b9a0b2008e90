"""Hand a trained policy on: `python -m morejax.export RUN DIR` writes a folder that plain `transformers` loads.

    python -m morejax.export runs/multiwoz/demo-policy-more-0 exported
    python -c "from transformers import AutoModelForCausalLM; AutoModelForCausalLM.from_pretrained('exported')"

The folder holds config.json, generation_config.json, the weights as safetensors, and the tokenizer with its chat
template; the critic, which no family has a place for, lies beside them in heads/heads.safetensors.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # before transformers is imported: no hub is asked here

import tyro
from flax import nnx

from morejax.config import StepConfig
from morejax.models import ActorCritic, CriticConfig, DecoderConfig, LoraConfig, hf
from morejax.models.adapters import save_adapters
from morejax.models.lora import partition
from morejax.models.split import Bound, Params, whole
from morejax.training.checkpoint import load_params
from morejax.training.initialise import structure

System = Literal["supervised", "scaffold", "ppo"]


@dataclass(frozen=True)
class Flags:
    """Write a run's model in the Hugging Face form."""

    run: tyro.conf.Positional[Path]
    """Folder of a run of `python -m morejax.experiments.multiwoz`."""
    folder: tyro.conf.Positional[Path]
    """Folder to write."""
    system: System | None = None
    """Which of the run's models; by default the last one that it has trained, never the scaffold."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the tensors."""
    max_shard_gb: float = 5.0
    """Files are at most that large, in 10^9 bytes."""
    adapters: bool = False
    """Write the adapters of a run with --model.lora.rank alone, in PEFT's form, to FOLDER/adapter, and the model that
    they stand on to FOLDER/base; without it they are merged into the weights."""


def export(flags: Flags) -> Path:
    """Write the folder.

    Raises:
      FileNotFoundError: no run, or it has not trained that model.
      FileExistsError: the folder holds a model.
      ValueError: the run is of another version, or no family can hold its decoder.
    """
    document = _read(flags.run)
    system = flags.system or _last_system(flags.run)
    config, params = load_run(flags.run, system)
    heads = {name: part for name, part in params.items() if name not in ("trunk", "policy")}
    about = {"critic": document["critic"], "streams": document["step"]["objectives"] + document["step"]["constraints"]}
    folder = flags.folder
    if flags.adapters:
        save_adapters(folder / "adapter", config, params, base=folder / "base")
        config, params = load_run(flags.run, "supervised")
        folder = folder / "base"
    hf.save_pretrained(
        folder,
        config,
        params,
        tokenizer=flags.run / "tokenizer",
        heads=heads,
        heads_about=about,
        dtype=flags.dtype,
        max_shard_bytes=int(flags.max_shard_gb * 10**9),
    )
    named = f", heads: {', '.join(heads)}" if heads else ""
    architecture = hf.to_hf_config(config)["architectures"][0]
    print(f"{system} of {flags.run} -> {flags.folder} ({architecture}{named})", file=sys.stderr)
    return flags.folder


def load_run(run: Path | str, system: System) -> tuple[DecoderConfig, Params]:
    """The decoder and the parameters of a run's model, heads included; with its adapters, and what they stand on.

    Args:
      run: folder of the run.
      system: which of its models.

    Raises:
      FileNotFoundError: no run, or it has not trained that model.
      ValueError: the run is of another version.
    """
    run = Path(run)
    document = _read(run)
    vocab_size = len(hf.load_tokenizer(run / "tokenizer"))
    config = replace(_config(DecoderConfig, document["model"], run), vocab_size=vocab_size)
    plain = replace(config, lora=LoraConfig())
    if system != "ppo":
        return plain, _load(run, system, hf.structure_of(plain)[1])
    critic, streams = _config(CriticConfig, document["critic"], run), _config(StepConfig, document["step"], run).streams
    graphdef, like = structure(lambda: ActorCritic(config, critic=critic, streams=len(streams), rngs=nnx.Rngs(0)))
    if not config.lora.rank:
        return config, _load(run, system, like)
    trained = _load(run, system, partition(like, config.lora)[0])
    return config, whole(Bound(graphdef, _load(run, "supervised", hf.structure_of(plain)[1])), trained)


def _load(run: Path, system: str, like: Params) -> Params:
    return load_params(run / "checkpoints" / f"{system}-final", like)[0]


def _read(run: Path) -> dict[str, Any]:
    """The configuration that a run was made with."""
    path = run / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{run}: no run here (no config.json)")
    document = json.loads(path.read_text()).get("config", {})
    missing = [name for name in ("model", "critic", "step") if name not in document]
    if missing:
        raise ValueError(f"{path}: config has no {', '.join(missing)}; not a run of morejax.experiments.multiwoz")
    return document


def _config(kind: Any, values: dict[str, Any], run: Path) -> Any:
    try:
        # JSON has no tuples.
        return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
    except TypeError as error:
        raise ValueError(f"{run / 'config.json'}: written by another version of morejax ({error})") from error


def _last_system(run: Path) -> System:
    for system in ("ppo", "supervised"):
        if (run / "checkpoints" / f"{system}-final" / "meta.json").is_file():
            return system
    raise FileNotFoundError(f"{run}: no finished model yet (neither ppo-final nor supervised-final)")


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 done, 2 a mistake in the flags or the run."""
    flags = tyro.cli(Flags, args=arguments, prog="python -m morejax.export", description=__doc__)
    try:
        export(flags)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
