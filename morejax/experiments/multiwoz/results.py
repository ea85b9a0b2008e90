"""What a run leaves for people and scripts: predictions, results.json and sample dialogues."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from morejax.experiments.multiwoz.decoding import Predictions
from morejax.experiments.multiwoz.parts import Parts
from morejax.experiments.multiwoz.samples import compared, read_predictions, sample_dialogues, shown_split
from morejax.training.run import write_json

Row = Mapping[str, Any]
"""The standard scorer's numbers with their `system` and `split`."""


def write_results(
    parts: Parts, scores: Sequence[Row], predictions: Mapping[str, Mapping[str, Predictions]]
) -> dict[str, Any]:
    """Write predictions, results.json and samples.json; what stands there for other splits is kept.

    Args:
        parts: of the run.
        scores: one row for every system and split that has just been scored.
        predictions: system -> split -> predictions; the system that the run is about stands last.

    Returns:
        The content of results.json.
    """
    path, final = parts.dir / "results.json", list(predictions)[-1]
    before = json.loads(path.read_text()) if path.is_file() else {"scores": [], "system": final}
    folder = parts.dir / "predictions"
    if before["system"] != final:
        _file_away(folder, before["system"])
    for system, made in predictions.items():
        for part, replies in made.items():
            target = _prediction_file(folder, system, part, final)
            target.parent.mkdir(parents=True, exist_ok=True)
            write_json(target, replies)
    results = collect_results(parts, merge_scores(before["scores"], scores), final)
    write_json(path, results)
    _write_samples(parts, folder, [row["split"] for row in results["scores"] if row["system"] == final], final)
    return results


def _prediction_file(folder: Path, system: str, part: str, final: str) -> Path:
    return (folder if system == final else folder / system) / f"{part}.json"


def _file_away(folder: Path, system: str) -> None:
    """Predictions of a system that the run is no longer about go where those of the others are."""
    (folder / system).mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.json"):
        path.replace(folder / system / path.name)


def merge_scores(before: Sequence[Row], now: Sequence[Row]) -> list[Row]:
    """Rows of an earlier evaluation and of this one, which replaces those of the same system and split.

    Returns:
        Rows in the order of this evaluation's systems, and for each of them in the order of their first scoring.
    """
    rows = {(row["system"], row["split"]): row for row in (*before, *now)}
    systems = list(dict.fromkeys(row["system"] for row in (*now, *before)))
    return sorted(rows.values(), key=lambda row: systems.index(row["system"]))


def collect_results(parts: Parts, scores: Sequence[Row], final: str) -> dict[str, Any]:
    """The content of results.json.

    Args:
        parts: of the run.
        scores: one row for every system and split.
        final: the system that the run is about.

    Returns:
        Top-level numbers are those of the final system on test where there is one, else on dev, else on `select`.
    """
    config = parts.config
    rows = {row["split"]: row for row in scores if row["system"] == final}
    main = next(rows[name] for name in ("test", "dev", *rows) if name in rows)
    ppo = parts.run.stage_record("ppo") or {}
    return {
        "method": config.method,
        "track": config.track,
        "corpus": parts.corpus.name,
        "preset": config.preset,
        "seed": config.seed,
        "fit": parts.fit,
        "select": parts.select,
        "split": main["split"],
        "system": final,
        **{name: main[name] for name in ("inform", "success", "bleu", "combined", "dialogues")},
        "scores": list(scores),
        "constraints": ppo.get("constraints", {}),
        "chosen": ppo.get("best"),
        "timings": parts.run.timings(),
    }


def _write_samples(parts: Parts, folder: Path, scored: Sequence[str], final: str) -> None:
    """Dialogues side by side as samples.json, from the selection split where that has been scored."""
    part = shown_split(parts.select, scored)
    config, shown = parts.config, parts.corpus.dialogues(part)[: parts.config.samples]
    systems = {"supervised": _prediction_file(folder, "supervised", part, final)}
    systems |= {name: other / f"{part}.json" for name, other in compared(config.compare).items()}
    # What the run is about stands last, beside what it is compared with.
    systems |= {final: _prediction_file(folder, final, part, final)}
    made = {name: read_predictions(path, shown) for name, path in systems.items()}
    write_json(parts.dir / "samples.json", sample_dialogues(shown, made, final, parts.corpus.database))
