"""Presets on a command line: `--preset` is read first, since it gives the other flags their defaults."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def preset_name(arguments: Sequence[str], known: Sequence[str], default: str = "demo") -> str:
    """The preset that the arguments name.

    Raises:
        SystemExit: there is none of that name (status 2).
    """
    name = default
    for index, argument in enumerate(arguments):
        if argument == "--preset" and index + 1 < len(arguments):
            name = arguments[index + 1]
        elif argument.startswith("--preset="):
            name = argument.partition("=")[2]
    if name not in known:
        print(f"error: --preset must be one of {', '.join(known)}, not {name!r}", file=sys.stderr)
        raise SystemExit(2)
    return name
