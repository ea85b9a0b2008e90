"""A finished run read back from its folder."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

from morejax.experiments.shared.systems import System, systems
from morejax.experiments.shop.config import ShopConfig
from morejax.experiments.shop.parts import ShopParts
from morejax.training.interrupt import StopRequest


def load_run(folder: Path, system: str = "") -> tuple[ShopParts, System]:
    """A run's parts and one of its models.

    Args:
        folder: of the run.
        system: supervised, scaffold or ppo; empty for the one that the run is about.

    Raises:
        FileNotFoundError: no run is there, or it has no such model.
        ValueError: the folder is another experiment's.
    """
    config = read_config(folder)
    parts = ShopParts(config, StopRequest(), read_only=True)
    if parts.run.stage_record("supervised") is None:
        raise FileNotFoundError(f"{folder}: stage supervised is not finished; continue the run with --resume")
    if config.method != "supervised" and not system and parts.run.stage_record("ppo") is None:
        raise FileNotFoundError(
            f"{folder}: stage ppo is not finished; continue the run with --resume, or name a model, {folder}:supervised"
        )
    found = systems(parts)
    if system and system not in found:
        raise FileNotFoundError(f"{folder}: it has no model {system!r}, only {', '.join(found)}")
    return parts, found[system or list(found)[-1]]


def read_config(folder: Path) -> ShopConfig:
    """The resolved configuration of a run.

    Raises:
        FileNotFoundError: no run is there.
        ValueError: it is another experiment's, or of another version.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no run here (no config.json); expected the --out folder of a shop run")
    document = json.loads(path.read_text())
    if document.get("experiment") != "shop":
        raise ValueError(f"{path}: not a run of morejax.experiments.shop")
    try:
        config = from_document(ShopConfig, document["config"])
    except TypeError as error:
        raise ValueError(f"{path}: written by another version of morejax ({error})") from error
    return replace(config, out=folder, resume=True)


def from_document(kind: Any, values: Any) -> Any:
    """A dataclass from what JSON has made of it: nested ones are built, lists become tuples.

    Raises:
        TypeError: a field that the class does not have.
    """
    if not isinstance(kind, type) or not is_dataclass(kind):
        return tuple(values) if isinstance(values, list) else values
    unknown = sorted(set(values) - {field.name for field in fields(kind)})
    if unknown:
        raise TypeError(f"{kind.__name__} has no {', '.join(unknown)}")
    hints = get_type_hints(kind)
    return kind(**{name: from_document(hints[name], value) for name, value in values.items()})
