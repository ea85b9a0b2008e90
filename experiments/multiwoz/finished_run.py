"""What scripts that read a finished run share: its command behind `--`, its rows in a file, and how they end."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from morejax.experiments.multiwoz.__main__ import parse
from morejax.experiments.multiwoz.config import MultiwozConfig
from morejax.training.interrupt import Interrupted

COLUMNS = ("inform", "success", "bleu", "combined")

Rows = list[dict[str, Any]]


def command_line(description: str | None) -> argparse.ArgumentParser:
    """A parser with `--save` and the run's own command; the script adds its flags."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", type=Path, help="file for the rows as JSON")
    parser.add_argument("run", nargs="+", metavar="FLAG", help="behind --: the command of the run")
    return parser


def read(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    rows_of: Callable[[MultiwozConfig, argparse.Namespace], Rows],
) -> tuple[argparse.Namespace, Rows]:
    """Read the run, and save what is found where `--save` says.

    Args:
        parser: of `command_line`.
        arguments: None takes the process's own.
        rows_of: run and flags -> rows; raises ValueError or OSError where they do not go together.

    Raises:
        SystemExit: with 2 and a message on standard error, where anything is wrong.
    """
    options = parser.parse_args(arguments)
    if options.save and not options.save.absolute().parent.is_dir():
        parser.error(f"--save {options.save}: its folder is not there")
    try:
        rows = rows_of(parse([*options.run, "--resume"]), options)
    except (ValueError, OSError, Interrupted) as error:
        parser.exit(2, f"error: {error}\n")
    if options.save:
        options.save.write_text(json.dumps(rows, indent=1) + "\n")
    return options, rows
