"""Recipes of PPO (`--recipes`): several policies from one supervised model in the stage `ppo`, whose mean is the run's.

The mean of policies that different recipes have made may be better than each of them, where their errors differ
(Wortsman et al. 2022, "Model soups", arXiv 2203.05482; experiments/multiwoz/RESULTS.md, B31, B48 and B49, where it is
and where it is not).
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import tyro

from morejax import hosts
from morejax.experiments.multiwoz.config import MultiwozConfig
from morejax.models.split import Params
from morejax.training.run import write_json
from morejax.training.writers import METRICS_FILE

FOLDER = "recipes"
"""Folder of a run with what every recipe leaves: <number>/{checkpoints,metrics.jsonl,tensorboard,recipe.json}."""
_OWN = ("ppo.", "numbers.")


def recipe_configs(config: MultiwozConfig) -> tuple[MultiwozConfig, ...]:
    """What every recipe trains by: the configuration with the recipe's flags on top and a seed of its own.

    Args:
        config: resolved.

    Raises:
        SystemExit: a recipe has a name or value that there is not; named on stderr (status 2).
        ValueError: a recipe is not of ppo.* and numbers.* or sets what is the same for all, or the policy has adapters.
    """
    if config.recipes and config.model.lora.rank:
        raise ValueError("--recipes with --model.lora.rank: the mean of adapters is not that of the models")
    return tuple(_parse(config, number, text) for number, text in enumerate(config.recipes, 1))


def _parse(config: MultiwozConfig, number: int, text: str) -> MultiwozConfig:
    words = shlex.split(text)
    if words and not words[0].startswith(_OWN):
        raise ValueError(
            f"--recipes, number {number}: {text!r} begins with {words[0]!r}, expected names without their dashes, "
            "ppo.* or numbers.*, each with its value, e.g. 'ppo.temperature 0.7 ppo.iterations 60'"
        )
    # A mapping that is not empty would be offered name by name, and no other name taken.
    base = replace(config, recipes=(), numbers=replace(config.numbers, thresholds={}))
    try:
        made = tyro.cli(
            MultiwozConfig,
            args=[f"--{word}" if word.startswith(_OWN) else word for word in words],
            default=base,
            prog="python -m morejax.experiments.multiwoz",
            config=(tyro.conf.CascadeSubcommandArgs,),
        )
    except SystemExit:
        print(f"error: --recipes, number {number}: {text!r}", file=sys.stderr)
        raise
    if (made.ppo.turns, made.ppo.split) != (config.ppo.turns, config.ppo.split):
        raise ValueError(f"--recipes, number {number}: --ppo.turns and --ppo.split are the same for all recipes")
    thresholds = config.numbers.thresholds | made.numbers.thresholds
    # Dialogues and samples of its own, as the runs of --ppo.runs have.
    return replace(made, seed=config.seed + 1000 * (number - 1), numbers=replace(made.numbers, thresholds=thresholds))


def train_recipes(
    folder: Path,
    configs: tuple[MultiwozConfig, ...],
    texts: tuple[str, ...],
    train: Callable[[MultiwozConfig, Path], dict[str, Any]],
) -> list[dict[str, Any]]:
    """Train by one recipe after another; those that are finished are not trained again.

    Args:
        folder: of the run.
        configs: of `recipe_configs`.
        texts: the flags they come from.
        train: (configuration, folder) -> record of a policy that is then in the folder's checkpoints/ppo-final.

    Returns:
        What `train` said of every recipe, with its flags.
    """
    records = []
    # By this folder a run knows that the stage has begun, and that flags of PPO may not change any more.
    hosts.on_main(lambda: (folder / "checkpoints" / "ppo").mkdir(parents=True, exist_ok=True))
    for number, (config, text) in enumerate(zip(configs, texts, strict=True), 1):
        own = folder / FOLDER / str(number)
        record = hosts.on_main(lambda own=own: _record(own))
        if record is None:
            hosts.say(f"recipe {number} of {len(configs)}: {text or 'as the run'}")
            hosts.on_main(lambda own=own: own.mkdir(parents=True, exist_ok=True))
            record = {"flags": text} | train(config, own)
            hosts.on_main(lambda own=own, record=record: write_json(own / "recipe.json", record))
        records.append(record)
    hosts.on_main(lambda: _collect_metrics(folder, len(configs)))
    return records


def _record(folder: Path) -> dict[str, Any] | None:
    path = folder / "recipe.json"
    return json.loads(path.read_text()) if path.is_file() else None


def _collect_metrics(folder: Path, recipes: int) -> None:
    """The recipes' iterations in the run's own log, counted through all of them; again is the same as once."""
    path, behind = folder / METRICS_FILE, 0
    lines = [line for line in path.read_text().splitlines() if json.loads(line).get("stage") != "ppo"]
    for number in range(1, recipes + 1):
        found = [json.loads(line) for line in (folder / FOLDER / str(number) / METRICS_FILE).read_text().splitlines()]
        lines += [json.dumps(one | {"step": one["step"] + behind, "recipe": number}) for one in found]
        behind += max(one["step"] for one in found)
    part = path.with_suffix(".part")
    part.write_text("".join(f"{line}\n" for line in lines))
    part.replace(path)


def mean(policies: list[Params]) -> Params:
    """The mean of parameters, leaf by leaf, where they lie."""
    return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *policies)
