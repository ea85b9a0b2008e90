"""What a run leaves for people and scripts: results.json and sample dialogues."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from morejax import hosts
from morejax.experiments.shop.parts import ShopParts
from morejax.tasks.shop import judge_texts
from morejax.tasks.shop.context import Ids
from morejax.tasks.shop.ontology import FUNCTIONS
from morejax.tasks.shop.state import take
from morejax.training.run import write_json

Replies = Mapping[tuple[str, str], Mapping[tuple[str, int], Ids]]
"""(system, split) -> (dialogue id, turn) -> reply."""


def write_results(parts: ShopParts, rows: Sequence[Mapping[str, Any]], replies: Replies) -> None:
    """Write results.json and samples.json; an A/B test that stands there is kept.

    Args:
        parts: of the run.
        rows: a row a system and split; the system that the run is about stands last.
        replies: what they answered.
    """
    hosts.on_main(lambda: _write(parts, rows, replies))


def _write(parts: ShopParts, rows: Sequence[Mapping[str, Any]], replies: Replies) -> None:
    path, config, final = parts.dir / "results.json", parts.config, rows[-1]["system"]
    before = json.loads(path.read_text()) if path.is_file() else {}
    main = next(row for row in rows if (row["system"], row["split"]) == (final, "test"))
    ppo = parts.run.stage_record("ppo") or {}
    results = {
        "method": config.method,
        "preset": config.preset,
        "seed": config.seed,
        "corpus": parts.corpus.name,
        "system": final,
        "split": main["split"],
        "reasoning": main["reasoning"],
        "all_right": main["all_right"],
        "scores": list(rows),
        "constraints": ppo.get("constraints", {}),
        "rewards_on_device": ppo.get("on_device"),
        "ab": before.get("ab"),
        "timings": parts.run.timings(),
    }
    write_json(path, results)
    write_json(parts.dir / "samples.json", sample_dialogues(parts, replies, final))


def sample_dialogues(parts: ShopParts, replies: Replies, final: str) -> list[dict[str, Any]]:
    """Test dialogues with the corpus's reply and each system's, and what the checker finds wrong in them."""
    split = parts.corpus.split("test")
    said = {system: made for (system, name), made in replies.items() if name == "test"}
    shown = []
    for dialogue in split.dialogues[: parts.config.samples]:
        turns = []
        for turn in dialogue.turns:
            texts = {"corpus": turn.response}
            texts |= {system: parts.task.text(made[dialogue.id, turn.index]) for system, made in said.items()}
            verdict = judge_texts(list(texts.values()), take(split.gold, [turn.row] * len(texts)))
            wrong = [
                [name for name, ok, due in zip(FUNCTIONS, score > 0.5, applies, strict=True) if due and not ok]
                for score, applies in zip(verdict.score, verdict.applies, strict=True)
            ]
            answers = [
                {"system": name, "text": text, "wrong": errors}
                for (name, text), errors in zip(texts.items(), wrong, strict=True)
            ]
            turns.append({"user": turn.user, "asked": list(turn.asked), "answers": answers})
        shown.append({"id": dialogue.id, "domain": dialogue.domain, "final": final, "turns": turns})
    return shown
