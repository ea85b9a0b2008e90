r"""What to say, or how to say it? Scores of a run's models, of its scaffold with people's acts, and BLEU by content.

    python experiments/multiwoz/gold_acts.py --save gold_acts.json -- --preset cpu --data-dir DATA --out runs/mwz

What follows `--` is the command of a finished run on the policy track. Its models answer the split that choices are
made on, behind people's own replies (with `--context.given`, too). The scaffold does it twice: with the acts that it
writes itself, and with people's acts of that turn in their place. Only the wording is left to it then: what it scores
is what this size of model could reach if it always chose to say what people said there.

Turns are told apart by content: `same` are those whose reply has exactly the placeholders of people's (in any order, a
reply without any included). `bleu_same` and `bleu_other` are corpus BLEU of either kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from finished_run import COLUMNS, command_line, read
from sacrebleu import corpus_bleu

from morejax.experiments.multiwoz.config import MultiwozConfig
from morejax.experiments.multiwoz.parts import Parts
from morejax.experiments.shared.systems import systems
from morejax.tasks.multiwoz import tokenizer as vocabulary
from morejax.tasks.multiwoz.normalise import PLACEHOLDER, unify
from morejax.tasks.multiwoz.rewards import unified
from morejax.tasks.multiwoz.task import TurnPrompts
from morejax.training.interrupt import StopRequest
from morejax.training.task import Ids

Write = Callable[[Sequence[TurnPrompts]], list[Ids]]


def run(config: MultiwozConfig) -> list[dict[str, Any]]:
    """Answer, score and print; a row a system.

    Raises:
        ValueError: an end-to-end run, or one without a scaffold.
        FileNotFoundError: there is no such run.
    """
    if config.track != "policy":
        raise ValueError(f"--track {config.track}: expected a run on the policy track, where states are people's")
    rows = []
    with StopRequest() as stop:
        parts = Parts(config, stop, read_only=True)
        writers = _writers(parts)
        columns = (*COLUMNS, "same", "bleu_same", "bleu_other")
        print("| system | Inform | Success | BLEU | Combined | same content, % | BLEU there | BLEU elsewhere |")
        print("|---|" + "---:|" * len(columns))
        for name, write in writers.items():
            row = {"system": name, "split": parts.select} | _scores(parts, write)
            rows.append(row)
            print(f"| {name} | {' | '.join(f'{row[key]:.1f}' for key in columns)} |", flush=True)
    return rows


def _writers(parts: Parts) -> dict[str, Write]:
    """Every model of the run, and the scaffold with people's acts."""
    found = systems(parts)
    if "scaffold" not in found:
        raise ValueError(f"{parts.dir} has no scaffold, which is what reads acts: finish that stage first")
    writers: dict[str, Write] = {}
    for name, system in found.items():
        answer = (parts.decoding.reason_and_answer if system.reasoned else parts.decoding.answer)(system.params)
        writers[name] = lambda turns, answer=answer: answer([turn.direct for turn in turns])
    given = parts.decoding.answer(found["scaffold"].params)
    writers["scaffold, people's acts"] = lambda turns: given([turn.reasoned for turn in turns])
    return writers


def _scores(parts: Parts, write: Write) -> dict[str, float]:
    task = parts.task
    turns = [prompts for dialogue in task.corpus.dialogues(parts.select) for prompts in task.prompts(dialogue)]
    texts = [vocabulary.decode(task.tokenizer, reply) for reply in write(turns)]
    said: dict[str, list[dict[str, Any]]] = {}
    for turn, text in zip(turns, texts, strict=True):
        said.setdefault(turn.dialogue.id, []).append({"response": text})
    scores = task.score(said, parts.select)
    return {key: scores[key] for key in COLUMNS} | by_content(
        texts, [turn.dialogue.turns[turn.turn].delex for turn in turns]
    )


def by_content(texts: Sequence[str], people: Sequence[str]) -> dict[str, float]:
    """Per cent of replies with people's placeholders, and corpus BLEU of those and of the others (0 of none)."""
    same = [content(text) == content(other) for text, other in zip(texts, people, strict=True)]
    pairs = [(unified(text), unified(other)) for text, other in zip(texts, people, strict=True)]
    kinds = {
        name: [pair for pair, is_same in zip(pairs, same, strict=True) if is_same == kind]
        for name, kind in (("bleu_same", True), ("bleu_other", False))
    }
    bleu = {name: _bleu(*zip(*chosen, strict=True)) if chosen else 0.0 for name, chosen in kinds.items()}
    return {"same": 100 * sum(same) / len(same)} | bleu


def content(text: str) -> list[str]:
    """The placeholders of a delexicalised text in their unified form, sorted."""
    return sorted(unify(name) for name, _ in PLACEHOLDER.findall(text.lower()))


def _bleu(texts: Sequence[str], people: Sequence[str]) -> float:
    # `force` only silences the warning that the text looks tokenised.
    return corpus_bleu(list(texts), [list(people)], force=True).score


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    read(command_line(__doc__), arguments, lambda config, options: run(config))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
