r"""Between the supervised model and the policy that PPO made of it: a front Success -> BLEU from one run.

    python experiments/multiwoz/interpolate.py --save front.json --shares 0 0.25 0.5 0.75 1 -- \
        --preset cpu --data-dir DATA --out runs/mwz

What follows `--` is the command of a finished run (policy track). Parameters are (1 - a) supervised + a policy for
each share a (above 1: beyond the policy); each such model answers the split that choices are made on greedily. After
Wortsman et al. 2022 (WiSE-FT) and Ramé et al. 2024 (WARP), who find such points above the front of single runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from front import draw_front

from morejax.experiments.multiwoz.__main__ import parse
from morejax.experiments.multiwoz.config import MultiwozConfig
from morejax.experiments.multiwoz.parts import Parts
from morejax.experiments.shared.systems import systems
from morejax.training.interrupt import Interrupted, StopRequest

COLUMNS = ("inform", "success", "bleu", "combined")


def run(config: MultiwozConfig, shares: Sequence[float]) -> list[dict[str, Any]]:
    """Mix, answer, score and print; a row a share.

    Raises:
        ValueError: the run has no policy.
        FileNotFoundError: there is no such run.
    """
    rows = []
    with StopRequest() as stop:
        parts = Parts(config, stop)
        found = systems(parts)
        if "ppo" not in found:
            raise ValueError(f"{parts.dir} has no policy: finish the run first")
        start, end = found["supervised"].params, found["ppo"].params
        print("| share of the policy | Inform | Success | BLEU | Combined | distinct 3-grams |\n|---|" + "---:|" * 5)
        for share in shares:
            mixed = jax.tree.map(lambda a, b, share=share: (1 - share) * a + share * b, start, end)
            predictions = parts.decoding.predict(mixed, parts.select, label=f"share {share:g}")
            scores = parts.task.score(predictions, parts.select)
            trigrams = scores["richness"]["num_trigrams"]
            rows.append({"share": share, "split": parts.select, "num_trigrams": trigrams, "seed": config.seed})
            rows[-1] |= {key: scores[key] for key in COLUMNS}
            print(f"| {share:g} | {' | '.join(f'{scores[key]:.2f}' for key in COLUMNS)} | {trigrams} |", flush=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    cut = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shares", type=float, nargs="+", default=[0, 0.25, 0.5, 0.75, 1], help="a")
    parser.add_argument("--save", type=Path, help="file for the rows as JSON; a figure is drawn beside it")
    options = parser.parse_args(given[:cut])
    try:
        rows = run(parse([*given[cut + 1 :], "--resume"]), options.shares)
    except (ValueError, OSError, Interrupted) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.save:
        options.save.write_text(json.dumps(rows, indent=1) + "\n")
        points = [(f"{row['share']:g}", row["success"], row["bleu"]) for row in rows]
        draw_front(points, rows[0]["split"], options.save.with_suffix(".png"), "share of the policy")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
