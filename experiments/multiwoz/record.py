r"""Add runs to the list of attempts: what each was, what it scored, and where its last iteration stood.

    python experiments/multiwoz/record.py --to experiments/multiwoz/attempts.jsonl B13=runs/front/d-=-0.50-seed0

One JSON line a run: command (without folders), commit, the policy's scores and richness on the split that choices are
made on, and of the last PPO iteration J, multipliers, shares of the gradient, KL and entropy; of a merged run the
commands of those whose policies it is the mean of. A name that is there is replaced.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from morejax.training.writers import METRICS_FILE, read_stages

_SCORES = ("inform", "success", "bleu", "combined", "richness")
_GROUPS, _SINGLE = ("J/", "multiplier/", "share/"), ("kl", "entropy")


# Where, or in how many parts, and what stands for the rest.
_LEFT_OUT = ("--out", "--resume", "--stages", "--compare")
_FOLDERS = {"--data-dir": "DATA", "--model": "MODEL"}


def record(name: str, run: Path) -> dict[str, Any]:
    """The line of a run.

    Raises:
        ValueError: it has no scores of a policy on the split that choices are made on, or another command opened it.
        FileNotFoundError: a file of it is not there.
    """
    results, config = (json.loads((run / file).read_text()) for file in ("results.json", "config.json"))
    found = [row for row in results["scores"] if (row["system"], row["split"]) == ("ppo", results["select"])]
    if not found:
        raise ValueError(f"{run}: no scores of the policy on {results['select']}: evaluate it with --split")
    scores = {"commit": config.get("commit"), **{key: found[0][key] for key in _SCORES}}
    seconds = {"ppo_seconds": results["timings"].get("ppo")}
    if "merged_from" in config:  # The mean of several runs has no iterations of its own.
        commands = [plain_command(one["command"]) for one in config["merged_from"]]
        return {"attempt": name, "merged_from": commands, **scores, **seconds}
    ppo = read_stages(run / METRICS_FILE)["ppo"]
    last = {
        key: round(float(values[np.isfinite(values)][-1]), 4)
        for key, values in ppo.items()
        if (key.startswith(_GROUPS) or key in _SINGLE) and np.isfinite(values).any()
    }
    return {
        "attempt": name,
        "command": plain_command(config["command"]),
        **scores,
        "last_iteration": int(ppo["step"][-1]),
        "last": last,
        **seconds,
    }


def plain_command(command: str) -> str:
    """A command that says what was run, not where or in how many parts.

    Raises:
        ValueError: it is not one of the experiment.
    """
    kept: list[str] = []
    # A flag and what it is given, one by one.
    words = [part for word in shlex.split(command) for part in (word.split("=", 1) if word[:2] == "--" else [word])]
    if words[1:3] != ["-m", "morejax.experiments.multiwoz"]:
        raise ValueError(f"{command!r} is not the experiment's own: the run was last opened by another command")
    while words:
        flag = words.pop(0)
        values = []
        while flag.startswith("--") and words and not words[0].startswith("--"):
            values.append(words.pop(0))
        if flag in _FOLDERS:
            values = [_FOLDERS[flag]]
        kept += [] if flag in _LEFT_OUT else [flag, *values]
    return shlex.join(kept)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    parser.add_argument("--to", type=Path, required=True, help="the list, made where it is not there")
    options = parser.parse_args(arguments)
    lines = {}
    try:
        if options.to.is_file():
            lines = {json.loads(line)["attempt"]: line for line in options.to.read_text().splitlines()}
        for given in options.runs:
            # A folder's name may have an equals sign in it, as those of the grid have.
            name, _, run = given.partition("=")
            if not name or not run:
                raise ValueError(f"{given!r}: expected NAME=RUN")
            lines[name] = json.dumps(record(name, Path(run)))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    options.to.write_text("".join(f"{line}\n" for line in lines.values()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
