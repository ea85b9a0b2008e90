"""One self-contained ``report.html`` for a run: scores, figures, sample dialogues, and how to read them.

``python -m morejax.training.report RUN_DIR`` rebuilds the page from the files that the run has left. The page
loads nothing: figures are inline SVG, the style sheet is inline, and it follows the reader's light or dark
preference.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup, escape

from morejax.training import figures
from morejax.training.progress import format_duration
from morejax.training.writers import METRICS_FILE, read_stages

REPORT_FILE = "report.html"
SYSTEM_NAMES = {
    "human": "People",
    "supervised": "Supervised",
    "scaffold": "Scaffold (reasons first)",
    "ppo": "After PPO",
}
METHOD_NAMES = {
    "more": "constraints, adaptive weights",
    "mixed": "one weighted sum of all streams",
    "fixed": "constraints, fixed weights",
    "unconstrained": "adaptive weights, no constraints",
    "supervised": "supervised learning only",
}
RICHNESS_NAMES = {
    "avg_lengths": "mean length (tokens)",
    "cond_entropy": "conditional bigram entropy (bits)",
    "num_unigrams": "distinct words",
    "num_trigrams": "distinct 3\u2011grams",
}
DST_NAMES = {"joint_accuracy": "joint accuracy (%)", "slot_f1": "slot F1 (%)"}
_PLACEHOLDER = re.compile(r"\[[a-z]+(?:_[a-z]+)*\]", re.IGNORECASE)


def write_report(run_dir: Path | str, *, board: Sequence[Any] | None = None) -> Path:
    """Write ``report.html`` into a run's folder from the files there.

    Args:
        run_dir: holds ``config.json`` and ``results.json``; ``metrics.jsonl``, ``samples.json`` and
            ``reward_heads.json`` are shown where the run has left them, and the page says where not.
        board: published rows to compare with (``system``, ``bleu``, ``inform``, ``success``, ``combined``,
            ``reinforced``); default: the published board of the track when the corpus is MultiWOZ 2.2, else
            none.

    Returns:
        Path of the page.

    Raises:
        FileNotFoundError: ``config.json`` or ``results.json`` is missing.
        ValueError: a file is not valid JSON, or ``results.json`` lacks a field.
    """
    run_dir = Path(run_dir)
    config, results = read_json(run_dir / "config.json"), read_json(run_dir / "results.json")
    _check_results(run_dir / "results.json", results)
    page = (
        environment()
        .get_template("report.html.j2")
        .render(
            title=f"{config.get('experiment', 'multiwoz')} · {results['method']} · {results['track']}",
            facts=_facts(config, results),
            command=commands(config),
            versions=config.get("versions", {}),
            config=json.dumps(config, indent=2, ensure_ascii=False),
            headline=_headline(results),
            scores=_score_tables(results, published_rows(results) if board is None else board),
            constraints=constraint_rows(results),
            figures=_draw(run_dir, results),
            heads=reward_heads(run_dir),
            samples=sample_dialogues(run_dir),
            timings=timing_rows(results),
            results=results,
        )
    )
    path = run_dir / REPORT_FILE
    path.write_text(page, encoding="utf-8")
    return path


def published_rows(results: Mapping[str, Any]) -> Sequence[Any]:
    """Published systems to set beside a run: its track's board on MultiWOZ 2.2, none on another corpus."""
    if results["corpus"] != "multiwoz-2.2":
        return ()
    from morejax.tasks.multiwoz import board

    return (*board.nearest_rows(results["track"]), board.REFERENCE_CORPUS[results["track"]])


def highlight(text: str) -> Markup:
    """Escape a reply and mark its ``[placeholders]``."""
    parts, position = [], 0
    for match in _PLACEHOLDER.finditer(text):
        parts += [escape(text[position : match.start()]), Markup("<mark>{}</mark>").format(match[0])]
        position = match.end()
    return Markup("").join([*parts, escape(text[position:])])


# -- sections of the page
# ------------------------------------------------------------------------------------------


def _facts(config: Mapping[str, Any], results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What stands in the banner: label and value."""
    corpus = results["corpus"]
    named = {
        "corpus": "embedded (made by the project itself)" if corpus == "embedded" else corpus,
        "track": {"policy": "policy (gold state)", "e2e": "end to end (own state)"}.get(
            results["track"], results["track"]
        ),
        "method": f"{results['method']}: {METHOD_NAMES.get(results['method'], 'custom')}",
        "preset": results.get("preset"),
        "learnt from": results.get("fit"),
        "chosen on": results.get("select"),
        "seed": results.get("seed"),
        "device": config.get("device"),
        "commit": config.get("commit"),
    }
    return [(label, str(value)) for label, value in named.items() if value is not None]


def commands(config: Mapping[str, Any]) -> str:
    """Every command that the run was made by, one a line: a resumed run has several."""
    command = config.get("command", "")
    last = command if isinstance(command, str) else " ".join(map(str, command))
    return "\n".join([*config.get("earlier_commands", []), last])


def _headline(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The final system's four numbers, each with its distance to the supervised system on the same split."""
    before = next(
        (row for row in results["scores"] if row["system"] == "supervised" and row["split"] == results["split"]),
        None,
    )
    final = next((row for row in reversed(results["scores"]) if row["split"] == results["split"]), None)
    changed = before is not None and final is not None and final["system"] != "supervised"
    names = {"inform": "Inform", "success": "Success", "bleu": "BLEU", "combined": "Combined"}
    return [
        {
            "name": name,
            "value": results[key],
            "change": results[key] - before[key] if changed and before else None,
        }
        for key, name in names.items()
    ]


def _score_tables(results: Mapping[str, Any], board: Sequence[Any]) -> list[dict[str, Any]]:
    """One table a split; the published rows go under the last one."""
    splits = list(dict.fromkeys(row["split"] for row in results["scores"]))
    tables = []
    for split in splits:
        rows = [row for row in results["scores"] if row["split"] == split]
        shown = [{**row, "name": SYSTEM_NAMES.get(row["system"], row["system"])} for row in rows]
        tables.append(
            {
                "split": split,
                "rows": shown,
                "domains": _domain_rows(rows),
                "board": [],
                **_extra_columns(rows),
            }
        )
    main = next((table for table in tables if table["split"] == results["split"]), tables[-1] if tables else None)
    if main is not None:
        main["board"] = list(board)
    return sorted(tables, key=lambda table: table is not main)


def _extra_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Columns of richness and state tracking that at least one row has."""
    has = lambda group, key: any((row.get(group) or {}).get(key) is not None for row in rows)  # noqa: E731
    return {
        "richness": {key: name for key, name in RICHNESS_NAMES.items() if has("richness", key)},
        "dst": {key: name for key, name in DST_NAMES.items() if has("dst", key)},
    }


def _domain_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Inform and Success of every domain: one entry a domain with a cell for each system."""
    groups = [row.get("per_domain") or {} for row in rows]
    domains = dict.fromkeys(name for group in groups for name in group.get("inform", {}) if name != "total")
    return [
        {
            "domain": domain,
            "cells": [tuple(group.get(kind, {}).get(domain) for kind in ("inform", "success")) for group in groups],
        }
        for domain in sorted(domains)
    ]


def constraint_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each constraint with its threshold, first and last J, multiplier, and whether it is met."""
    rows = []
    for name, values in (results.get("constraints") or {}).items():
        last, threshold = values.get("last"), values.get("threshold")
        met = None if last is None or threshold is None else last >= threshold
        rows.append({"name": name.replace("_", " "), **values, "met": met})
    return rows


def _draw(run_dir: Path, results: Mapping[str, Any]) -> dict[str, Markup]:
    """Name -> inline SVG of every figure for which there are numbers."""
    stages = read_stages(run_dir / METRICS_FILE) if (run_dir / METRICS_FILE).is_file() else {}
    ppo = stages.get("ppo", {"step": np.empty(0)})
    drawn = {
        "scores": (
            figures.score_figure(results["scores"], results["split"]),
            "Standard scores of each system",
        ),
        "constraints": (figures.constraints_figure(ppo), "Each constraint's J against its threshold"),
        "multipliers": (figures.multipliers_figure(ppo), "Multipliers and violations of the constraints"),
        "evaluations": (figures.evaluation_figure(ppo), "Standard scores during PPO"),
        "weights": (figures.weights_figure(ppo), "Objective weights and gradient shares"),
        "objectives": (figures.objectives_figure(ppo), "J of each objective"),
        "norms": (figures.norms_figure(ppo), "Gradient norms and cosines"),
        "kl": (figures.kl_entropy_figure(ppo), "KL, entropy, clip fraction, explained variance"),
        "supervised": (figures.supervised_figure(stages), "Losses of the supervised stages"),
        "reliability": (_reliability(run_dir), "Calibration of the reward heads"),
    }
    return {
        name: Markup(figures.to_svg(figure, name, description))
        for name, (figure, description) in drawn.items()
        if figure is not None
    }


def _reliability(run_dir: Path) -> Any:
    return figures.reliability_figure({name: head.get("bins", ()) for name, head in reward_heads(run_dir).items()})


def reward_heads(run_dir: Path) -> dict[str, Any]:
    """Head -> ``{"accuracy", "auc", "ece", "brier", "examples", "bins": [...]}`` as far as measured."""
    path = run_dir / "reward_heads.json"
    if not path.is_file():
        return {}
    heads = {name: head for name, head in read_json(path).items() if isinstance(head, dict) and "accuracy" in head}
    if not heads:
        raise ValueError(f'{path}: no head in it; expected {{head: {{"accuracy": ..., "bins": [...]}}}}')
    return heads


def sample_dialogues(run_dir: Path) -> list[dict[str, Any]]:
    """Dialogues that the run has left.

    Raises:
        ValueError: it has left them as an earlier version wrote them.
    """
    path = run_dir / "samples.json"
    samples = read_json(path) if path.is_file() else []
    if any("before" in turn for sample in samples for turn in sample["turns"]):
        raise ValueError(
            f"{path} was written by an earlier version: give the run's command again with --resume --stages evaluate"
        )
    return samples


def timing_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Stage, duration and its share of the whole run in percent."""
    timings = results.get("timings") or {}
    total = sum(timings.values()) or 1.0
    rows = [{"stage": stage, "seconds": seconds} for stage, seconds in timings.items()]
    return [{**row, "share": 100 * row["seconds"] / total, "text": format_duration(row["seconds"])} for row in rows]


# -- plumbing
# ------------------------------------------------------------------------------------------------------


def environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("morejax.training", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        highlight=highlight, number=_number, signed=_signed, words=lambda name: name.replace("_", " ")
    )
    environment.filters["system"] = lambda name: SYSTEM_NAMES.get(name, name)
    return environment


def _number(value: Any, digits: int = 1) -> str:
    """A number with fixed digits; what is missing or not finite is a dash."""
    if value is None or (isinstance(value, float) and not np.isfinite(value)):
        return "–"
    return str(value) if isinstance(value, int) and digits == 0 else f"{value:.{digits}f}"


def _signed(value: float, digits: int = 1) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def read_json(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected the folder of a run that has been evaluated")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); the run may have been cut off while writing it") from error


def _check_results(path: Path, results: Mapping[str, Any]) -> None:
    for field in ("method", "track", "corpus", "split", "scores", "inform", "success", "bleu", "combined"):
        if field not in results:
            raise ValueError(f"{path}: no field {field!r}; found {', '.join(sorted(results))}")


def rebuild(arguments: Sequence[str] | None, write: Callable[[Path], Path], command: str) -> int:
    """Write the report of each run folder named on the command line; returns the exit status.

    Args:
        arguments: folders; None takes those of the process.
        write: writes one report.
        command: what users type, for the usage.
    """
    folders = list(sys.argv[1:] if arguments is None else arguments)
    if not folders or folders[0] in ("-h", "--help"):
        print(f"usage: {command} RUN_DIR [RUN_DIR ...]\n\nRebuilds RUN_DIR/report.html.")
        return 0 if folders else 2
    for folder in folders:
        try:
            print(write(Path(folder)))
        except (FileNotFoundError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: rebuild the report of each run folder named."""
    return rebuild(arguments, write_report, "python -m morejax.training.report")


if __name__ == "__main__":
    raise SystemExit(main())
