"""The stage `evaluate`: every model of the run answers every split and is given the standard scores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from morejax import hosts
from morejax.experiments.multiwoz.decoding import Predictions
from morejax.experiments.multiwoz.parts import Parts
from morejax.experiments.multiwoz.results import write_results
from morejax.experiments.shared.branch import ANSWERS
from morejax.experiments.shared.systems import System, systems


def evaluate(parts: Parts) -> dict[str, Any]:
    """Predict and score every system on every split; write predictions, results and sample dialogues.

    What an earlier evaluation of the same run has found on other splits is kept.
    """
    predictions: dict[str, dict[str, Predictions]] = {}
    scores: list[dict[str, Any]] = []
    for name, system in systems(parts).items():
        predictions[name] = predict_splits(parts, name, system, parts.eval_splits)
        for part, made in predictions[name].items():
            row = {"system": name, "split": part} | parts.task.score(made, part)
            hosts.say(_line(row))
            scores.append(row)
    results = hosts.on_main(lambda: write_results(parts, scores, predictions))
    return {"splits": list(dict.fromkeys(row["split"] for row in results["scores"]))}


def predict_splits(parts: Parts, name: str, system: System, splits: Sequence[str]) -> dict[str, Predictions]:
    """Predictions of a system for each split; a split that lies in a larger one is not answered twice."""
    ids = {part: [dialogue.id for dialogue in parts.corpus.dialogues(part)] for part in splits}
    made: dict[str, Predictions] = {}
    for part in sorted(splits, key=lambda part: -len(ids[part])):
        whole = next((larger for larger in made if made[larger].keys() >= set(ids[part])), None)
        if whole is None:
            made[part] = _answers(parts, name, system, part)
        else:
            made[part] = {key: made[whole][key] for key in ids[part]}
    return {part: made[part] for part in splits}


def _answers(parts: Parts, name: str, system: System, part: str) -> Predictions:
    """Of a model that this run shares with the one it was branched from, what it answered there."""
    shared = parts.dir / ANSWERS / name / f"{part}.json"
    if shared.is_file():
        made = json.loads(shared.read_text())
        turns = {dialogue.id: len(dialogue.turns) for dialogue in parts.corpus.dialogues(part)}
        if turns == {key: len(replies) for key, replies in made.items()}:
            hosts.say(f"{name} on {part}: answers taken over from the run this one was branched from")
            return made
    label = f"{name} answers {part}"
    return parts.decoding.predict(system.params, part, reasoned=system.reasoned, label=label)


def _line(row: Mapping[str, Any]) -> str:
    return (
        f"{row['system']:>10} on {row['split']:<8} inform {row['inform']:5.1f}  success {row['success']:5.1f}  "
        f"bleu {row['bleu']:5.2f}  combined {row['combined']:6.2f}"
    )
