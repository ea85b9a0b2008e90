"""Presets on a command line: `--preset` is read first, since it gives the other flags their defaults."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any


def preset_name(arguments: Sequence[str], known: Sequence[str], default: str = "demo") -> str:
    """The preset that the arguments name.

    Raises:
        SystemExit: there is none of that name (status 2).
    """
    name = flag_value(arguments, "--preset", default)
    if name not in known:
        print(f"error: --preset must be one of {', '.join(known)}, not {name!r}", file=sys.stderr)
        raise SystemExit(2)
    return name


def flag_value(arguments: Sequence[str], flag: str, default: str) -> str:
    """What the arguments give for a flag that decides other flags' defaults; the last one counts."""
    value = default
    for index, argument in enumerate(arguments):
        if argument == flag and index + 1 < len(arguments):
            value = arguments[index + 1]
        elif argument.startswith(f"{flag}="):
            value = argument.partition("=")[2]
    return value


def check_task_decides(config: Any, defaults: Any) -> None:
    """Refuse flags of the models' parts that the task sets, where they ask for something else.

    Raises:
        ValueError: one does; names it.
    """
    vocabulary = config.model.vocab_size
    if vocabulary != defaults.model.vocab_size:
        other = "; give --vocab-size" if hasattr(config, "vocab_size") else ""
        raise ValueError(f"--model.vocab-size {vocabulary}: the model's vocabulary is its tokenizer's{other}")
    track = getattr(config.context, "track", None)
    if track is not None and track not in (defaults.context.track, config.track):
        raise ValueError(f"--context.track {track}: give --track {track}")
