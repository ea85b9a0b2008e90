"""One self-contained `report.html` for a run; `python -m morejax.experiments.shop.report RUN_DIR` rebuilds it."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from morejax.tasks.shop.ontology import FUNCTIONS
from morejax.training import figures, report
from morejax.training.plotting import OKABE_ITO, Metrics, label_ends, panels, plot_line, series, styled, words
from morejax.training.writers import METRICS_FILE, read_stages

NAMES = {"corpus": "in the corpus"} | report.SYSTEM_NAMES
METHOD_NAMES = report.METHOD_NAMES | {"gdpo": "weighted sum of streams normalised in groups, no critic"}


def write_report(run_dir: Path | str) -> Path:
    """Write `report.html` into a run's folder from the files there.

    Args:
        run_dir: holds config.json and results.json; metrics.jsonl, samples.json, reward_heads.json, ab.md and ab.png
            are shown where the run has left them.

    Returns:
        Path of the page.

    Raises:
        FileNotFoundError: config.json or results.json is missing.
        ValueError: a file is not valid JSON.
    """
    run_dir = Path(run_dir)
    config, results = report.read_json(run_dir / "config.json"), report.read_json(run_dir / "results.json")
    page = (
        report.environment()
        .get_template("shop_report.html.j2")
        .render(
            title=f"shop · {results['method']}",
            facts=_facts(config, results),
            command=report.commands(config),
            config=json.dumps(config, indent=2, ensure_ascii=False),
            ab=_ab_blocks(run_dir),
            ab_figure=_ab_figure(run_dir),
            scores=_score_tables(results),
            constraints=report.constraint_rows(results),
            figures=_draw(run_dir),
            heads=report.reward_heads(run_dir),
            samples=report.sample_dialogues(run_dir),
            names=NAMES,
            timings=report.timing_rows(results),
        )
    )
    path = run_dir / report.REPORT_FILE
    path.write_text(page, encoding="utf-8")
    return path


def _facts(config: Mapping[str, Any], results: Mapping[str, Any]) -> list[tuple[str, str]]:
    dialogues = ", ".join(f"{name} {count}" for name, count in config.get("corpus_dialogues", {}).items())
    where = {True: "on the device", False: "on the host"}
    named = {
        "corpus": f"generated ({dialogues})",
        "method": f"{results['method']}: {METHOD_NAMES.get(results['method'], 'custom')}",
        "preset": results.get("preset"),
        "seed": results.get("seed"),
        "rewards": where[config["rewards_on_device"]] if "rewards_on_device" in config else None,
        "device": config.get("device"),
        "commit": config.get("commit"),
    }
    return [(label, str(value)) for label, value in named.items() if value is not None]


def _score_tables(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    splits = list(dict.fromkeys(row["split"] for row in results["scores"]))
    tables = []
    for split in splits:
        rows = [row for row in results["scores"] if row["split"] == split]
        shown = [{**row, "name": NAMES.get(row["system"], row["system"])} for row in rows]
        language = list(rows[0]["language"])
        tables.append(
            {"split": split, "turns": rows[0]["turns"], "functions": FUNCTIONS, "language": language, "rows": shown}
        )
    return sorted(tables, key=lambda table: table["split"] != results["split"])


def _ab_blocks(run_dir: Path) -> list[dict[str, Any]]:
    path = run_dir / "ab.md"
    return markdown_blocks(path.read_text()) if path.is_file() else []


def markdown_blocks(text: str) -> list[dict[str, Any]]:
    """Tables and other lines of a Markdown text, in order: `{head, rows}` or `{text}`."""
    blocks: list[dict[str, Any]] = []
    for line in text.splitlines():
        if not line.startswith("|"):
            if line.strip():
                blocks.append({"text": line.strip().lstrip("# ").replace("**", ""), "rows": []})
            continue
        cells = [cell.strip().replace("**", "") for cell in line.strip().strip("|").split("|")]
        if set("".join(cells)) <= set("-: "):
            continue
        if blocks and "head" in blocks[-1] and len(blocks[-1]["head"]) == len(cells):
            blocks[-1]["rows"].append(cells)
        else:
            blocks.append({"head": cells, "rows": []})
    return blocks


def _ab_figure(run_dir: Path) -> str | None:
    """The figure as a data address, so that the page stands alone."""
    path = run_dir / "ab.png"
    if not path.is_file():
        return None
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _draw(run_dir: Path) -> dict[str, Markup]:
    stages = read_stages(run_dir) if (run_dir / METRICS_FILE).is_file() else {}
    ppo = stages.get("ppo", {"step": np.empty(0)})
    bins = {name: head.get("bins", ()) for name, head in report.reward_heads(run_dir).items()}
    drawn = {
        "constraints": (figures.constraints_figure(ppo), "Each constraint's J against its threshold"),
        "multipliers": (figures.multipliers_figure(ppo), "Multipliers and violations of the constraints"),
        "evaluations": (evaluation_figure(ppo), "Greedy accuracy during PPO"),
        "weights": (figures.weights_figure(ppo), "Objective weights and gradient shares"),
        "objectives": (figures.objectives_figure(ppo), "J of each objective"),
        "norms": (figures.norms_figure(ppo), "Gradient norms and cosines"),
        "kl": (figures.kl_entropy_figure(ppo), "KL, entropy, clip fraction, explained variance"),
        "supervised": (figures.supervised_figure(stages), "Losses of the supervised stages"),
        "reliability": (figures.reliability_figure(bins), "Calibration of the reward head"),
    }
    return {
        name: Markup(figures.to_svg(figure, name, description))
        for name, (figure, description) in drawn.items()
        if figure is not None
    }


@styled
def evaluation_figure(metrics: Metrics) -> Figure | None:
    """Greedy accuracy of every function on the selection split, and the means, each time that PPO measured them."""
    shown = [
        {name: f"eval/{name}" for name in names}
        for names in (FUNCTIONS, ("reasoning", "language"))
        if any(len(series(metrics, f"eval/{name}")[0]) for name in names)
    ]
    if not shown:
        return None
    figure, axes = panels(len(shown), columns=2, height=2.6)
    for axis, keys in zip(axes, shown, strict=True):
        ends = []
        for place, (name, key) in enumerate(keys.items()):
            steps, values = series(metrics, key)
            colour = OKABE_ITO[place % len(OKABE_ITO)]
            plot_line(axis, steps, values, colour, linewidth=1.6, marker="o", markersize=3)
            ends.append((float(values[-1]), words(name), colour))
        label_ends(axis, ends)
        axis.set(xlabel=figures.ITERATION, ylabel="percent, greedy")
    return figure


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: rebuild the report of each run folder named."""
    return report.rebuild(arguments, write_report, "python -m morejax.experiments.shop.report")


if __name__ == "__main__":
    sys.exit(main())
