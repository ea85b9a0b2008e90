"""Dialogues side by side for the report: people, the run's systems, those of other runs, and what each gets wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from morejax.experiments.multiwoz.decoding import Predictions
from morejax.tasks.multiwoz.database import Database
from morejax.tasks.multiwoz.faults import QUESTION, faults, habits
from morejax.tasks.multiwoz.records import Dialogue
from morejax.tasks.streams import SampledTurn

HUMAN = "human"
_TAKEN = (HUMAN, "supervised", "scaffold", "ppo")


def compared(compare: Sequence[str]) -> dict[str, Path]:
    """Name -> folder with the predictions of another run.

    Args:
        compare: NAME=RUN each, RUN the folder of an evaluated run.

    Raises:
        ValueError: not NAME=RUN, a name is taken, or RUN has no predictions.
    """
    found: dict[str, Path] = {}
    for one in compare:
        name, _, run = one.partition("=")
        if not name or not run:
            raise ValueError(f"--compare {one}: expected NAME=RUN, as in mixed=runs/mixed")
        if name in (*_TAKEN, *found):
            raise ValueError(f"--compare {one}: the name {name} is taken, choose another")
        found[name] = Path(run) / "predictions"
        if not found[name].is_dir():
            raise ValueError(f"--compare {one}: {found[name]} is not there; expected the folder of an evaluated run")
    return found


def shown_split(select: str, scored: Sequence[str]) -> str:
    """The split whose dialogues are shown: the selection split where that is scored, else the first."""
    return select if select in scored else scored[0]


def read_predictions(path: Path, dialogues: Sequence[Dialogue]) -> Predictions:
    """Predictions of a system.

    Raises:
        ValueError: the file is not there, or does not answer every turn of these dialogues.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not there; evaluate that run with --split {path.stem}")
    found = json.loads(path.read_text())
    for dialogue in dialogues:
        answers = len(found.get(dialogue.id, ()))
        if answers != len(dialogue.turns):
            raise ValueError(f"{path} has {answers} replies to {dialogue.id}, expected {len(dialogue.turns)}")
    return found


def sample_dialogues(
    dialogues: Sequence[Dialogue], systems: Mapping[str, Predictions], main: str, database: Database
) -> list[dict[str, Any]]:
    """Dialogues with every system's replies, people's first.

    Args:
        dialogues: which.
        systems: name -> predictions.
        main: the system whose states are shown.
        database: of the corpus.

    Returns:
        One entry a dialogue: `id`, `goal`, `verdicts` {system: what costs it Inform or Success}, and `turns`, each with
        `user`, `state` and `replies` {system: {"text": ..., "notes": what it does beside people}}.
    """
    return [_side_by_side(dialogue, systems, systems[main][dialogue.id], database) for dialogue in dialogues]


def _side_by_side(
    dialogue: Dialogue, systems: Mapping[str, Predictions], main: Sequence[Mapping[str, Any]], database: Database
) -> dict[str, Any]:
    said = {HUMAN: _turns(dialogue, [{"response": turn.delex} for turn in dialogue.turns])}
    said |= {name: _turns(dialogue, made[dialogue.id]) for name, made in systems.items()}
    verdicts = {
        name: [f"{fault.kind} ({', '.join(fault.what)})" for fault in faults(turns, database)]
        for name, turns in said.items()
    }
    return {
        "id": dialogue.id,
        "goal": dialogue.goal,
        "verdicts": verdicts,
        "turns": [
            {
                "user": turn.user,
                "state": main[turn.index].get("state", turn.state),
                "replies": {name: _reply(name, turns[turn.index], database) for name, turns in said.items()},
            }
            for turn in dialogue.turns
        ],
    }


def _turns(dialogue: Dialogue, replies: Sequence[Mapping[str, Any]]) -> list[SampledTurn]:
    pairs = zip(dialogue.turns, replies, strict=True)
    return [
        SampledTurn(dialogue, turn, reply["response"], (0,), reply.get("state", turn.state)) for turn, reply in pairs
    ]


def _reply(system: str, turn: SampledTurn, database: Database) -> dict[str, Any]:
    notes = [] if system == HUMAN else [habit for habit in habits(turn, database) if habit != QUESTION]
    return {"text": turn.text, "notes": notes}
