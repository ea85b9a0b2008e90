"""Tables, curves and the figure of a study; `study.py` makes the runs.

scores.md, scores.json   the final policies on every split, mean and standard deviation over seeds
ab_seeds.md              the A/B tests of all seeds
curves.jsonl             a line an arm, seed and iteration: J, multipliers, weights, gradient norms, evaluations
study.png                reasoning against language, and sound against regretted conversion
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from scipy import stats

SPLITS = ("dev", "test", "held_out")
CURVES = ("J/", "multiplier/", "weight/", "grad_norm/", "eval/", "kl", "response_tokens")
AB = {
    "conversion": "overall conversion",
    "reached_conversion": "reached conversion",
    "sound_conversion": "not regretted",
    "regretted": "regretted",
    "ineligible": "sold to the ineligible",
    "misinformed": "misinformed",
}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#8B4513", "#000000", "#B22222")


def score_row(arm: str, seed: int, flags: str, results: Mapping[str, Any]) -> dict[str, Any]:
    """The final policy's scores on every split, per cent."""
    scores = {s["split"]: s for s in results["scores"] if s["system"] == "ppo"}
    row: dict[str, Any] = {"arm": arm, "seed": seed, "flags": flags}
    for split in SPLITS:
        row[f"reasoning, {split}"] = 100 * scores[split]["reasoning"]
        row[f"all right, {split}"] = 100 * scores[split]["all_right"]
    row["language, test"] = 100 * float(np.mean(list(scores["test"]["language"].values())))
    language = 100 * float(np.mean(list(scores["dev"]["language"].values())))
    row["combined, dev"] = (row["reasoning, dev"] + language) / 2
    row["tokens"] = scores["test"]["reply_tokens"]
    return row


def score_table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: mean and standard deviation over seeds; reasoning on test against `more` seed by seed."""
    columns = [name for name in rows[0] if name not in ("arm", "seed", "flags")]
    lines = [f"| arm | seeds | {' | '.join(columns)} | reasoning, test, minus more |"]
    lines.append("|---|---:|" + "---:|" * (len(columns) + 1))
    base = {row["seed"]: row["reasoning, test"] for row in rows if row["arm"] == "more"}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = [row for row in rows if row["arm"] == arm]
        paired = [row["reasoning, test"] - base[row["seed"]] for row in mine if row["seed"] in base]
        cells = [arm, str(len(mine)), *(spread([row[name] for row in mine]) for name in columns)]
        cells.append("" if arm == "more" else difference(paired))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def ab_table(documents: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, one table a population of users: per cent of dialogues, mean and standard deviation over the seeds."""
    blocks = []
    for setting in documents[0]["settings"]:
        values: dict[str, dict[str, list[float]]] = {}
        for document in documents:
            for arm, found in document["settings"][setting].items():
                for metric in AB:
                    value = 100 * found["values"][metric]["value"]
                    values.setdefault(arm, {}).setdefault(metric, []).append(value)
        lines = [f"### Users: {setting}\n", f"| arm | seeds | {' | '.join(AB.values())} |"]
        lines.append("|---|---:|" + "---:|" * len(AB))
        for arm, found in values.items():
            cells = [arm, str(len(found["conversion"])), *(spread(found[metric]) for metric in AB)]
            lines.append(f"| {' | '.join(cells)} |")
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def curves(arm: str, seed: int, metrics: Path) -> list[dict[str, Any]]:
    """What a run's PPO logged of its streams, a row an iteration."""
    rows = []
    for line in metrics.read_text().splitlines():
        record = json.loads(line)
        if record.get("stage") == "ppo":
            kept = {name: round(value, 4) for name, value in record.items() if name.startswith(CURVES)}
            rows.append({"arm": arm, "seed": seed, "step": record["step"]} | kept)
    return rows


def draw(rows: Sequence[Mapping[str, Any]], documents: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Reasoning against language on test, and sound against regretted conversion where an A/B test has been played."""
    panels = 2 if documents else 1
    figure, axes = plt.subplots(1, panels, figsize=(6.4 * panels, 4.8), squeeze=False)
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    points = {
        arm: [(row["language, test"], row["reasoning, test"]) for row in rows if row["arm"] == arm] for arm in arms
    }
    _scatter(axes[0, 0], points, "language objectives, test, %", "reasoning right, test, %")
    if documents:
        setting = documents[0]["plan"]["settings"][-1]
        sold: dict[str, list[tuple[float, float]]] = {}
        for document in documents:
            for arm, found in document["settings"][setting].items():
                pair = (found["values"][name]["value"] for name in ("regretted", "sound_conversion"))
                sold.setdefault(arm, []).append(tuple(100 * value for value in pair))  # type: ignore[arg-type]
        _scatter(axes[0, 1], sold, f"regretted conversion, users `{setting}`, %", "conversion that is not regretted, %")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _scatter(axis: Any, points: Mapping[str, Sequence[tuple[float, float]]], across: str, up: str) -> None:
    """A small dot a seed, a large one for their mean."""
    for number, (arm, found) in enumerate(points.items()):
        colour = COLOURS[number % len(COLOURS)]
        values = np.array(found)
        axis.scatter(values[:, 0], values[:, 1], s=14, color=colour, alpha=0.45, linewidths=0)
        axis.scatter(*values.mean(0), s=70, color=colour, label=arm, edgecolors="white", linewidths=0.8)
    axis.set_xlabel(across)
    axis.set_ylabel(up)
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8, frameon=False)


def spread(values: Sequence[float]) -> str:
    """Mean, and standard deviation where there are several."""
    return f"{values[0]:.1f}" if len(values) == 1 else f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"


def difference(paired: Sequence[float]) -> str:
    """Mean of the differences and its 95 % interval by Student's t; one seed has none."""
    if len(paired) < 2:
        return "".join(f"{value:+.1f}" for value in paired)
    half = stats.t.ppf(0.975, len(paired) - 1) * np.std(paired, ddof=1) / np.sqrt(len(paired))
    return f"{np.mean(paired):+.1f} ± {half:.1f}"
