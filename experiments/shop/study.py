r"""Methods against each other in the shop: PPO runs from one backbone, a table of scores, and an A/B test per seed.

    python -m morejax.experiments.shop --preset cpu --out runs/shop/backbone \
        --stages generate supervised scaffold reward_heads
    python experiments/shop/study.py --backbone runs/shop/backbone --out runs/shop/study --seeds 0 1 2 3 4 --ab \
        -- --preset cpu
    python experiments/shop/oscillation.py runs/shop/study/more-* runs/shop/study/mixed-0.25-* \
        --out experiments/shop/oscillation

What follows `--` is the backbone's own command, without --out and --seed. Runs that are finished are not made again, so
the same command goes on after a stop; `--table` only reads what is there. Writes what `study_report.py` says and, with
--ab, a folder ab-seed<N> a seed, in which the supervised model is the control.

The weight of `mixed` is tuned: run its arms, take the one with the best mean of reasoning and language on dev (the
column `combined`), and report that one as the baseline. `selling` learns from simulated conversion alone; `selling,
constrained` from the same under the six constraints: the pair shows what the constraints are for.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import study_report

from morejax.experiments.shared.branch import branch

ARMS: dict[str, str] = {
    "more": "",
    "mixed 0.1": "--method mixed --mixed-weight 0.1",
    "mixed 0.25": "--method mixed --mixed-weight 0.25",
    "mixed 0.5": "--method mixed --mixed-weight 0.5",
    "mixed 1": "--method mixed --mixed-weight 1",
    "fixed": "--method fixed",
    "unconstrained": "--method unconstrained",
    "gdpo": "--method gdpo",
    "selling": "--method unconstrained --step.objectives conversion --step.weights fixed",
    "selling, constrained": "--method fixed --step.objectives conversion",
}


def folder(out: Path, arm: str, seed: int) -> Path:
    """Where an arm's run lies."""
    return out / f"{arm.replace(' ', '-').replace(',', '')}-{seed}"


def run_arm(arm: str, seed: int, options: argparse.Namespace) -> None:
    """PPO and evaluation of one arm, unless they are done."""
    out = folder(options.out, arm, seed)
    if (out / "results.json").is_file():
        return
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        branch(options.backbone, out, seed)
    print(f"== {arm}, seed {seed}: {out}", file=sys.stderr, flush=True)
    flags = [*options.common, *ARMS[arm].split(), "--out", str(out), "--seed", str(seed)]
    _shop(*flags, "--resume", "--score", "ppo", "--stages", "generate", "ppo", "evaluate")


def run_ab(arms: Sequence[str], seed: int, options: argparse.Namespace) -> None:
    """The A/B test of all arms of a seed."""
    out = options.out / f"ab-seed{seed}"
    if (out / "ab.json").is_file():
        return
    runs = [f"{arm.replace(' ', '-')}={folder(options.out, arm, seed)}" for arm in arms]
    named = [f"supervised={folder(options.out, arms[0], seed)}:supervised", *runs]
    _shop("ab", "--arms", *named, "--dialogues", str(options.dialogues), "--seed", str(seed), "--out", str(out))


def _shop(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "morejax.experiments.shop", *arguments], check=True)


def report(arms: Sequence[str], options: argparse.Namespace) -> str:
    """Write tables, curves and the figure of the runs that are finished; returns the table of scores.

    Raises:
        FileNotFoundError: none is.
    """
    runs = [(arm, seed, folder(options.out, arm, seed)) for arm in arms for seed in options.seeds]
    done = [(arm, seed, run) for arm, seed, run in runs if (run / "results.json").is_file()]
    if not done:
        raise FileNotFoundError(f"{options.out} holds no finished run of these arms")
    rows = [
        study_report.score_row(arm, seed, ARMS[arm], json.loads((run / "results.json").read_text()))
        for arm, seed, run in done
    ]
    table = study_report.score_table(rows)
    (options.out / "scores.json").write_text(json.dumps(rows, indent=1) + "\n")
    (options.out / "scores.md").write_text(table)
    lines = [row for arm, seed, run in done for row in study_report.curves(arm, seed, run / "metrics.jsonl")]
    (options.out / "curves.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    tests = [options.out / f"ab-seed{seed}" / "ab.json" for seed in options.seeds]
    documents = [json.loads(path.read_text()) for path in tests if path.is_file()]
    if documents:
        (options.out / "ab_seeds.md").write_text(study_report.ab_table(documents))
    study_report.draw(rows, documents, options.out / "study.png")
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    common = given[given.index("--") + 1 :] if "--" in given else []
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", type=Path, required=True, help="run with the stages before PPO done")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), help="some of the arms")
    parser.add_argument("--ab", action="store_true", help="then the A/B test of these arms, seed by seed")
    parser.add_argument("--dialogues", type=int, default=2000, help="of an arm in the A/B test")
    parser.add_argument("--table", action="store_true", help="run nothing, write the table of what is there")
    options = parser.parse_args(given[: given.index("--")] if "--" in given else given)
    options.common = common
    unknown = sorted(set(options.arms) - set(ARMS))
    if unknown:
        parser.error(f"--arms: {', '.join(unknown)} is not one of {', '.join(ARMS)}")
    for seed in () if options.table else options.seeds:
        # Seed by seed, so that a stop leaves whole columns.
        for arm in options.arms:
            run_arm(arm, seed, options)
        if options.ab:
            run_ab(options.arms, seed, options)
    try:
        print(report(options.arms, options))
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
