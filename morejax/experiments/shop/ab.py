"""The simulated A/B test: as the last stage of a run, and of several runs as the subcommand `ab`."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from morejax import hosts
from morejax.experiments.shared.command import run_command
from morejax.experiments.shared.systems import System, systems
from morejax.experiments.shop.config import ABConfig, ShopConfig
from morejax.experiments.shop.loading import load_run
from morejax.experiments.shop.parts import ShopParts
from morejax.training.progress import Progress
from morejax.training.run import write_json

Arms = Mapping[str, Callable[..., Any]]
"""Name -> agent, the control first."""

_DESCRIPTION = """\
Plays complete dialogues with simulated users against trained runs, all arms meeting the same users with the same luck,
and prints conversion, satisfaction, handoffs, regretted conversions and reasoning accuracy with confidence intervals.
The first arm is the control. An oracle, which always gives the right answer, is added by itself: it stands for the
human agent, and "share recovered" is (arm - control) / (oracle - control).
"""
_EPILOG = """\
arms:
  RUN is the folder of a finished run and stands for its final policy; RUN:supervised and RUN:scaffold for its other
  models; NAME=RUN names the arm.

example:
  python -m morejax.experiments.shop ab --arms control=runs/shop/a:supervised mixed=runs/shop/b more=runs/shop/a \\
      --dialogues 2000 --out runs/shop/ab
"""


def ab_stage(parts: ShopParts) -> dict[str, Any]:
    """The run's own models: the supervised one is the control. Writes ab.json, ab.md and ab.png."""
    config = parts.config.ab
    found = systems(parts)
    wanted = [name for name in found if name != "scaffold" or config.scaffold]
    label = {"ppo": parts.config.method}
    with parts.decoding.uninterrupted():
        arms = {label.get(name, name): agent(parts, found[name], parts.config.seed) for name in wanted}
        run_test(arms, config, parts.config, parts.dir)
    return {"arms": list(arms), "dialogues": config.dialogues}


def agent(parts: ShopParts, system: System, seed: int) -> Callable[..., Any]:
    """A model of a run as the A/B test plays it: greedy."""
    from morejax.tasks.shop.agents import model_agent

    generator = parts.decoding.reasoned if system.reasoned else parts.decoding.direct
    return model_agent(generator, system.params, reasons=system.reasoned, seed=seed)


def run_test(arms: Arms, config: ABConfig, run: ShopConfig, out: Path) -> dict[str, Any]:
    """Play, print the table, write ab.json, ab.md and ab.png into a folder; returns the content of ab.json."""
    from morejax.tasks.shop import ab_report
    from morejax.tasks.shop.ab_test import ab

    with contextlib.ExitStack() as shown:
        # How many dialogues there are is known once the test is laid out.
        bar = cache(lambda total: shown.enter_context(Progress("ab, dialogues", total)))
        results = ab(
            dict(arms),
            dialogues=config.dialogues,
            days=config.days,
            seed=config.seed,
            settings=config.settings,
            split=config.split,
            context=run.context,
            report=lambda ended, total: bar(total).update(ended),
        )
    text = ab_report.table(results)
    document = ab_report.as_json(results)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "ab.json", document)
    (out / "ab.md").write_text(text if text.endswith("\n") else text + "\n")
    ab_report.figure(results, out / "ab.png")
    hosts.say(text)
    return document


# The subcommand


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; ends the process with status 2 on wrong usage."""
    defaults = ABConfig()
    parser = argparse.ArgumentParser(
        prog="python -m morejax.experiments.shop ab",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--arms", nargs="+", required=True, metavar="RUN", help="runs; the first is the control")
    parser.add_argument("--dialogues", type=int, default=defaults.dialogues, help="per arm and setting (2000)")
    parser.add_argument("--days", type=int, default=defaults.days, help="simulated days (14)")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of users and luck, the same for all arms (0)")
    parser.add_argument("--settings", nargs="+", default=defaults.settings, help="populations of users (patient wary)")
    parser.add_argument("--split", default=defaults.split, help="of customers and policies: test (default) or held_out")
    parser.add_argument("--out", type=Path, default=Path("runs/shop/ab"), help="for ab.json, ab.md, ab.png")
    parser.add_argument("--json", action="store_true", help="print the numbers as one JSON object on stdout")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """`python -m morejax.experiments.shop ab ...`; returns the exit status (see `run_command`)."""
    return run_command(lambda: parse_arguments(arguments), _run)


def _run(options: argparse.Namespace) -> Path:
    config = ABConfig(options.dialogues, options.days, options.seed, tuple(options.settings), options.split)
    arms, run = load_arms(options.arms)
    document = run_test(arms, config, run, options.out)
    if options.json:
        print(json.dumps(document))
    return options.out


def load_arms(named: Sequence[str]) -> tuple[Arms, ShopConfig]:
    """Agents of the runs that are named on the command line, and the configuration of the first run.

    Raises:
        ValueError: two arms have one name, a system is unknown, or two runs read dialogues differently.
        FileNotFoundError: there is no such run, or its stage is not finished.
    """
    arms: dict[str, Callable[..., Any]] = {}
    configs: list[ShopConfig] = []
    for text in named:
        name, folder, system = split_arm(text)
        if name in arms:
            raise ValueError(f"--arms: two arms are called {name!r}; name them, e.g. other={folder}")
        parts, model = load_run(folder, system)
        configs.append(parts.config)
        if parts.config.context != configs[0].context:
            raise ValueError(
                f"--arms {text}: its context {parts.config.context} is not that of the first arm, "
                f"{configs[0].context}; all arms read dialogues alike"
            )
        arms[name] = agent(parts, model, parts.config.seed)
    return arms, configs[0]


def split_arm(text: str) -> tuple[str, Path, str]:
    """`NAME=RUN:SYSTEM`, whose outer parts may be missing, as name, folder and system ("" for the final one)."""
    name, given, rest = text.rpartition("=")
    rest = rest if given else text
    folder, colon, system = rest.rpartition(":")
    if not colon:
        folder, system = rest, ""
    default = Path(folder).name + (f"-{system}" if system else "")
    return name or default, Path(folder), system
