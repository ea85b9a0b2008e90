r"""Between the supervised model and the policy that PPO made of it: a front Success -> BLEU from one run.

    python experiments/multiwoz/interpolate.py --save front.json --shares 0 0.25 0.5 0.75 1 -- \
        --preset cpu --data-dir DATA --out runs/mwz

What follows `--` is the command of a finished run (policy track). Parameters are (1 - a) supervised + a policy (with
--aloud the scaffold in place of the supervised model) for each share a (above 1: beyond the policy); each such model
answers the split that choices are made on greedily. After Wortsman et al. 2022 (WiSE-FT) and Ramé et al. 2024 (WARP),
who find such points above the front of single runs.

--mean takes the policies of other runs from the same supervised model too (other seeds) and puts the mean of all
policies in the place of the one: what PPO's noise has moved them apart by goes, what they have in common stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from finished_run import COLUMNS, command_line, read
from front import draw_front

from morejax.experiments.multiwoz.config import MultiwozConfig
from morejax.experiments.multiwoz.parts import Parts
from morejax.experiments.shared.merge import mean_policy
from morejax.experiments.shared.systems import systems
from morejax.models.split import Params
from morejax.training.interrupt import StopRequest


def run(config: MultiwozConfig, shares: Sequence[float], others: Sequence[Path]) -> list[dict[str, Any]]:
    """Mix, answer, score and print; a row a share.

    Raises:
        ValueError: the run has no policy, or has adapters for one while others are to be averaged with it.
        FileNotFoundError: there is no such run.
    """
    rows = []
    with StopRequest() as stop:
        parts = Parts(config, stop, read_only=True)
        found = systems(parts)
        if "ppo" not in found:
            raise ValueError(f"{parts.dir} has no policy: finish the run first")
        start, end = found["scaffold" if parts.aloud else "supervised"].params, found["ppo"].params
        end = with_others(parts, end, others)
        print("| share of the policy | Inform | Success | BLEU | Combined | distinct 3-grams |\n|---|" + "---:|" * 5)
        for share in shares:
            mixed = jax.tree.map(lambda a, b, share=share: (1 - share) * a + share * b, start, end)
            predictions = parts.decoding.predict(mixed, parts.select, reasoned=parts.aloud, label=f"share {share:g}")
            scores = parts.task.score(predictions, parts.select)
            trigrams = scores["richness"]["num_trigrams"]
            rows.append({"share": share, "split": parts.select, "num_trigrams": trigrams, "policies": 1 + len(others)})
            rows[-1] |= {key: scores[key] for key in COLUMNS}
            print(f"| {share:g} | {' | '.join(f'{scores[key]:.2f}' for key in COLUMNS)} | {trigrams} |", flush=True)
    return rows


def with_others(parts: Parts, policy: Params, others: Sequence[Path]) -> Params:
    """The mean of a run's policy and those of other runs, without a critic, where parameters lie; see `merge`.

    Args:
        parts: of the run.
        policy: its own, without a critic.
        others: folders of runs from the same supervised model.

    Raises:
        ValueError: another run started from another model or has no policy, or policies have adapters.
        FileNotFoundError: there is no such run.
    """
    if not others:
        return policy
    mean = mean_policy([parts.dir, *others])
    return parts.actor(jax.device_put(mean, parts.placement.of_params(mean)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = command_line(__doc__)
    parser.add_argument("--shares", type=float, nargs="+", default=[0, 0.25, 0.5, 0.75, 1], help="a")
    parser.add_argument("--mean", type=Path, nargs="+", default=[], metavar="RUN", help="more policies")
    options, rows = read(parser, arguments, lambda config, options: run(config, options.shares, options.mean))
    if options.save:
        points = [(f"{row['share']:g}", row["success"], row["bleu"]) for row in rows]
        draw_front(points, rows[0]["split"], options.save.with_suffix(".png"), "share of the policy")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
