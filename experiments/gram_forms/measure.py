"""How well do the cheap gradient norms stand in for the exact ones, on a trained policy?

    python experiments/gram_forms/measure.py --rollouts 4 -- --preset cpu --data-dir DATA --out RUN

Samples rollouts with the supervised policy and with the final one of a finished run, takes the Gram matrix of all
streams' gradients over each whole rollout in every form of `--step.norm-at`, and compares it with `all`. Everything
after `--` is the run's own command. Writes gram_forms.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from scipy.stats import spearmanr

from morejax.compile import compile_step
from morejax.experiments.multiwoz import policy
from morejax.experiments.multiwoz.__main__ import parse
from morejax.experiments.multiwoz.parts import Parts
from morejax.experiments.shared import naturalness, policy_state, thresholds
from morejax.training.checkpoint import load_params
from morejax.training.initialise import structure
from morejax.training.interrupt import StopRequest
from morejax.training.rollouts import Frozen, Sampler, plan, static_shapes

FORMS = ("all", "virtual", "final_norm", "last_layer")


def gram(metrics: dict[str, float], names: tuple[str, ...]) -> np.ndarray:
    """G_ij = n_i n_j cos_ij from a step's metrics, f64[H, H]."""
    norms = np.array([metrics[f"grad_norm/{name}"] for name in names])
    cosine = np.eye(len(names))
    for i, one in enumerate(names):
        for j, two in enumerate(names[i + 1 :], i + 1):
            cosine[i, j] = cosine[j, i] = metrics[f"cosine/{one}/{two}"]
    return cosine * norms[:, None] * norms[None, :]


def compare(found: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """Agreement of two Gram matrices up to a common scale."""
    lengths, true = (np.sqrt(np.diag(g)) for g in (found, exact))
    cosines, true_cosines = (g / np.outer(n, n) for g, n in ((found, lengths), (exact, true)))
    shares, true_shares = lengths / lengths.mean(), true / true.mean()
    above = np.triu_indices(len(true), 1)
    return {
        "gram_cosine": float((found * exact).sum() / np.linalg.norm(found) / np.linalg.norm(exact)),
        "norm_error": float(np.mean(np.abs(shares - true_shares) / true_shares)),
        "norm_rank": float(spearmanr(lengths, true).statistic),
        "cosine_error": float(np.abs(cosines[above] - true_cosines[above]).mean()),
    }


def sampler_of(parts: Parts):
    """Fresh state (its policy the supervised model), sampler and prompts of a finished run."""
    supervised, scaffold = parts.load("supervised"), parts.load("scaffold")
    head_graphdef, head = naturalness.load_head(parts)
    task = parts.task.with_context(replace(parts.task.context, fluency_range=naturalness.fluency_range(parts)))
    config = parts.config
    measured = thresholds.reference_scores(parts, task, supervised, scaffold, head_graphdef, head)
    numbers = thresholds.fill_numbers(config.step, config.numbers, measured, config.threshold_margin)
    numbers = replace(numbers, learning_rate=0.0, value_learning_rate=0.0)
    prompts = policy._prompts(parts, task, supervised)
    state = policy_state.initial_state(parts, supervised, numbers)
    frozen = Frozen(parts.language_model[0], scaffold, supervised, head_graphdef, head)
    shapes = static_shapes(prompts, config.ppo.turns, config.context.max_reply)
    return state, Sampler(task, state, frozen, config.step, shapes, config.ppo, lambda tree: tree), prompts, shapes


def main() -> None:
    """Measure and write."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--rollouts", type=int, default=4)
    flags.add_argument("run", nargs="*", help="after --: the finished run's command")
    given = flags.parse_args()
    with StopRequest() as stop:
        parts = Parts(parse([*given.run, "--resume"]), stop, read_only=True)
    state, sampler, prompts, shapes = sampler_of(parts)
    final, _ = load_params(parts.dir / "checkpoints" / "ppo-final", structure(parts.build_policy)[1])
    # The rates are 0: every minibatch sees the same policy, and metrics are of the mean Gram matrix.
    base = replace(parts.config.step, epochs=1, minibatches=4)
    steps = {form: compile_step(replace(base, norm_at=form), donate=False) for form in FORMS}
    rows = []
    for name, params in (("supervised", state.params), ("final", final)):
        batches = plan([len(turns) for turns in prompts], shapes.turns, seed=7)
        for number in range(given.rollouts):
            chosen = [prompt for dialogue in next(batches) for prompt in prompts[dialogue]]
            rollout, _ = sampler(params, chosen, jax.random.key(number))
            grams = {}
            for form, step in steps.items():
                metrics = jax.device_get(step(state.replace(params=params), rollout)[1])
                grams[form] = gram(metrics, parts.config.step.streams)
            for form in FORMS[1:]:
                rows.append({"policy": name, "rollout": number, "form": form} | compare(grams[form], grams["all"]))
                print(json.dumps(rows[-1]), file=sys.stderr)
    summary = [
        {"policy": name, "form": form}
        | {
            key: round(float(np.mean([row[key] for row in rows if (row["policy"], row["form"]) == (name, form)])), 4)
            for key in ("gram_cosine", "norm_error", "norm_rank", "cosine_error")
        }
        for name in ("supervised", "final")
        for form in FORMS[1:]
    ]
    worst = min(row["gram_cosine"] for row in rows)
    document = {"rollouts": given.rollouts, "turns": shapes.turns, "streams": parts.config.step.streams}
    document |= {"summary": summary, "worst_gram_cosine": round(worst, 4), "rows": rows}
    (Path(__file__).parent / "gram_forms.json").write_text(json.dumps(document, indent=1) + "\n")
    for row in summary:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")


if __name__ == "__main__":
    main()
