"""Ablations and the front Success -> BLEU on MultiWOZ: many PPO runs from one backbone, one table, one figure.

    python experiments/multiwoz/grid.py ablation --backbone runs/mwz --out runs/grid --seeds 0 1 2 -- \
        --preset cpu --data-dir DATA
    python experiments/multiwoz/grid.py front --backbone runs/mwz --out runs/front --seeds 0 -- \
        --preset cpu --data-dir DATA

What follows `--` is the backbone's own command, without --out and --seed; with --ppo.runs 1 an arm is one PPO run
instead of the preset's mean of several, in a quarter of the time. The recorded grids are of the turn recipe: TURNS of
README.md stood behind `--`. Runs that are finished are not made again, so the same command goes on after a stop;
`--table` only reads what is there. Writes `<grid>.json` (a row a run), `<grid>.md`
(mean and spread over seeds, and the difference to `more` with its 95 % interval) and a figure: of all runs, or for the
front beside the published systems.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from arms import draw_arms
from finished_run import COLUMNS
from front import draw_front
from scipy import stats

from morejax.experiments.shared.branch import branch

_CORPUS_BLEU = "--step.objectives corpus_bleu fluency faithfulness naturalness"
_QUICK = "--numbers.multiplier-init 0.2 --numbers.multiplier-kp 5 --numbers.multiplier-ki 0.3"
_LOWER = "--numbers.thresholds success 0.8 inform 0.88"
_RESTRAINT = "--step.constraints inform success slots restraint --numbers.thresholds success 0.85 inform 0.9"
# What the presets were when these attempts were made.
_DEMANDING = (
    "--step.objectives likeness fluency faithfulness naturalness --numbers.thresholds inform 0.93 success 0.9 "
    "--numbers.multiplier-init 1 --numbers.multiplier-kp 2 --numbers.multiplier-ki 0.05"
)
GRIDS: dict[str, dict[str, str]] = {
    "ablation": {
        "more": "",
        # Thresholds that are given for all arms have no constraint to hold here.
        "success only": "--step.objectives success --step.constraints --numbers.thresholds --step.weights fixed",
        "mixed 0.1": "--method mixed --mixed-weight 0.1",
        "mixed 0.25": "--method mixed --mixed-weight 0.25",
        "mixed 0.5": "--method mixed --mixed-weight 0.5",
        "mixed 1": "--method mixed --mixed-weight 1",
        "gdpo 0.1": "--method gdpo --mixed-weight 0.1",
        "gdpo": "--method gdpo",
        "gdpo 0.5": "--method gdpo --mixed-weight 0.5",
        "fixed": "--method fixed",
        "unconstrained": "--method unconstrained",
    },
    "parts": {
        "more": "",
        "center": "--step.adv-norm center",
        "after": "--step.adv-norm after",
        "center, inv_norm": "--step.adv-norm center --step.weights inv_norm",
        "stream, inv_norm": "--step.weights inv_norm",
        "exact norms": "--step.norm-at all",
        "clip multipliers": "--step.multipliers clip",
        "J over 3 iterations": "--numbers.multiplier-ema 0.7",  # the others have 0.9: TURNS of README.md
        "direct reference": "--ppo.ref-context direct",
        "aloud": "--aloud",
        "one clip": "--step.clip mixed --step.weights fixed",
    },
    "attempts": {
        name: f"{_DEMANDING} {flags}".strip()
        for name, flags in {
            "more": "",
            "temperature 0.5": "--ppo.temperature 0.5",
            "likeness only": "--step.objectives likeness",
            "corpus BLEU for likeness": _CORPUS_BLEU,
            "corpus BLEU only": "--step.objectives corpus_bleu",
            "corpus BLEU and fluency": "--step.objectives corpus_bleu fluency",
            "temperature 0.5, likeness only": "--ppo.temperature 0.5 --step.objectives likeness",
            "four replies a turn": "--ppo.samples 4 --step.baseline leave_one_out",
            "weak anchor": "--numbers.kl-coef 0.02",
            "strong anchor": "--numbers.kl-coef 0.3",
            "lower thresholds": _LOWER,
            "lower thresholds, strong anchor": f"--numbers.kl-coef 0.3 {_LOWER}",
            "lower thresholds, strong anchor, corpus BLEU": f"--numbers.kl-coef 0.3 {_LOWER} {_CORPUS_BLEU}",
            "low multipliers": "--numbers.multiplier-init 0.2",
            "low multipliers, likeness only": "--numbers.multiplier-init 0.2 --step.objectives likeness",
            "two passes": "--step.epochs 2",
            "restraint": _RESTRAINT,
            "restraint, corpus BLEU": f"{_RESTRAINT} {_CORPUS_BLEU}",
            "restraint, strong anchor": f"{_RESTRAINT} --numbers.kl-coef 0.3",
            "restraint, strong anchor, corpus BLEU": f"{_RESTRAINT} --numbers.kl-coef 0.3 {_CORPUS_BLEU}",
            "quick multipliers": _QUICK,
            "quick multipliers, corpus BLEU": f"{_QUICK} {_CORPUS_BLEU}",
            "quick multipliers, corpus BLEU and fluency": f"{_QUICK} --step.objectives corpus_bleu fluency",
        }.items()
    },
    "front": {
        f"d = {d:.2f}": f"--numbers.thresholds success {d} inform {min(d + 0.05, 0.93):.2f} {_QUICK} {_CORPUS_BLEU}"
        for d in (0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
    },
}  # fmt: skip


def folder(name: str, seed: int, out: Path) -> Path:
    """Where an arm's run lies."""
    return out / f"{name.replace(' ', '-').replace(',', '')}-seed{seed}"


def check_flags(run: Path, flags: str) -> None:
    """A finished run is an arm's only if it was made with the arm's flags.

    Raises:
        ValueError: it was not.
    """
    document = json.loads((run / "config.json").read_text())
    commands = [document["command"], *document.get("earlier_commands", [])]
    if not any(" ".join(flags.split()) in command for command in commands):
        raise ValueError(f"{run} was not made with {flags!r}: the grid has changed since; name another --out")


def run_arm(name: str, seed: int, flags: str, options: argparse.Namespace) -> None:
    """One PPO run with its evaluation, unless it is done."""
    out = folder(name, seed, options.out)
    if (out / "results.json").is_file():
        check_flags(out, flags)
        return
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        branch(options.backbone, out, seed)
    command = [sys.executable, "-m", "morejax.experiments.multiwoz", *options.common, *flags.split()]
    command += ["--out", str(out), "--seed", str(seed), "--resume", "--stages", "ppo", "evaluate"]
    print(f"== {name}, seed {seed}: {out}", file=sys.stderr, flush=True)
    subprocess.run(command, check=True)


def rows_of(grid: dict[str, str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row a finished run: scores of the final policy on the split that choices are made on."""
    rows = []
    for name in grid:
        for seed in options.seeds:
            path = folder(name, seed, options.out) / "results.json"
            if not path.is_file():
                continue
            check_flags(path.parent, grid[name])
            results = json.loads(path.read_text())
            scores = [s for s in results["scores"] if s["system"] == "ppo" and s["split"] == results["select"]]
            if not scores:
                raise ValueError(f"{path}: no scores on {results['select']}: run it with that among --eval-splits")
            richness = {key: scores[0]["richness"][key] for key in ("num_unigrams", "num_trigrams", "cond_entropy")}
            row = {"arm": name, "seed": seed, "flags": grid[name], "split": results["select"]}
            rows.append(row | {key: scores[0][key] for key in COLUMNS} | richness)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: mean and standard deviation over seeds; Combined against `more` seed by seed."""
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    lines = ["| arm | seeds | Inform | Success | BLEU | Combined | distinct 3-grams | Combined minus more |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|---:|")
    base = {row["seed"]: row["combined"] for row in rows if row["arm"] == "more"}
    for arm in arms:
        mine = [row for row in rows if row["arm"] == arm]
        cells = [arm, str(len(mine))]
        cells += [_spread([row[key] for row in mine]) for key in (*COLUMNS, "num_trigrams")]
        paired = [row["combined"] - base[row["seed"]] for row in mine if row["seed"] in base]
        cells.append("" if arm == "more" else _difference(paired))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"


def _difference(paired: Sequence[float]) -> str:
    """Mean of the differences and its 95 % interval over seeds, by Student's t: of the dialogues' luck and of many
    comparisons at once it says nothing. One seed has none."""
    if not paired:
        return ""
    if len(paired) == 1:
        return f"{paired[0]:+.1f}"
    half = stats.t.ppf(0.975, len(paired) - 1) * np.std(paired, ddof=1) / np.sqrt(len(paired))
    verdict = "" if abs(np.mean(paired)) > half else ", not significant"
    return f"{np.mean(paired):+.1f} ± {half:.1f}{verdict}"


def mean_points(rows: Sequence[dict[str, Any]]) -> list[tuple[str, float, float]]:
    """Name, Success and BLEU of every arm, means over seeds."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["arm"], []).append(row)

    def mean(arm: str, key: str) -> float:
        return float(np.mean([row[key] for row in found[arm]]))

    return [(arm, mean(arm, "success"), mean(arm, "bleu")) for arm in found]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    common = given[given.index("--") + 1 :] if "--" in given else []
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", choices=tuple(GRIDS))
    parser.add_argument("--backbone", type=Path, required=True, help="run with the stages before PPO done")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", help="some of the grid's arms")
    parser.add_argument("--table", action="store_true", help="run nothing, write the table of what is there")
    options = parser.parse_args(given[: given.index("--")] if "--" in given else given)
    options.common = common
    grid = GRIDS[options.grid]
    unknown = sorted(set(options.arms or ()) - set(grid))
    if unknown:
        parser.error(f"--arms: {', '.join(unknown)} is not one of {', '.join(grid)}")
    if options.arms:
        grid = {name: flags for name, flags in grid.items() if name in options.arms}
    try:
        if not options.table:
            # Seed by seed, so that a stop leaves whole columns.
            for seed in options.seeds:
                for name, flags in grid.items():
                    run_arm(name, seed, flags, options)
        rows = rows_of(grid, options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not rows:
        print(f"error: {options.out} holds no finished run of {options.grid}", file=sys.stderr)
        return 2
    (options.out / f"{options.grid}.json").write_text(json.dumps(rows, indent=1) + "\n")
    (options.out / f"{options.grid}.md").write_text(table(rows))
    print(table(rows))
    if options.grid == "front":
        print(draw_front(mean_points(rows), rows[0]["split"], options.out / "front.png", "Success held at d"))
    else:
        print(draw_arms(rows, options.out / f"{options.grid}.png"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
