"""Command line: ``python -m morejax.tasks.multiwoz.embedded --to DIR [--dialogues N] [--seed S]``."""

from __future__ import annotations

import argparse
import sys

from morejax.tasks.multiwoz.embedded import write_embedded


def main(arguments: list[str] | None = None) -> int:
    """Write the embedded corpus into a folder; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m morejax.tasks.multiwoz.embedded",
        description="Write the embedded corpus in the file layout of MultiWOZ 2.2.",
    )
    parser.add_argument("--to", required=True, metavar="DIR", help="new or empty folder")
    parser.add_argument("--dialogues", type=int, default=1500, metavar="N", help="over all splits (default: 1500)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="corpus seed (default: 0)")
    options = parser.parse_args(arguments)
    try:
        root = write_embedded(options.to, dialogues=options.dialogues, seed=options.seed)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.dialogues} dialogues written to {root}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
