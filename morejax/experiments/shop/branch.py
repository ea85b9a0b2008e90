"""`python -m morejax.experiments.shop.branch RUN OUT`: a run that shares another's stages before PPO.

Methods differ in PPO alone: they start from the same supervised model, scaffold and reward head. This copies those from
a run that has finished them into a new folder, where `--out OUT --resume` goes on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from morejax.experiments.multiwoz.branch import branch


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m morejax.experiments.shop.branch",
        description="Start a run from another one's supervised model, scaffold and reward head.",
        epilog="example: python -m morejax.experiments.shop.branch runs/shop/more runs/shop/mixed --seed 1, then the "
        "first run's command with --out runs/shop/mixed --seed 1 --method mixed --resume",
    )
    parser.add_argument("run", type=Path, help="folder of a run that has finished its stages before PPO")
    parser.add_argument("out", type=Path, help="folder of the new run")
    parser.add_argument("--seed", type=int, help="of PPO in the new run; default: the run's own")
    options = parser.parse_args(arguments)
    try:
        print(branch(options.run, options.out, options.seed))
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
