"""Further maximum likelihood for a model of a run, scored before and after: what the *_tuning scripts share."""

from __future__ import annotations

import tempfile
from pathlib import Path

from finished_run import COLUMNS

from morejax.experiments.multiwoz.parts import Parts
from morejax.models.split import Params
from morejax.training import language_model
from morejax.training.batching import Sequences
from morejax.training.interrupt import StopRequest
from morejax.training.language_model import LanguageModelConfig


def people(parts: Parts, split: str) -> Sequences:
    """What people say in a split, each reply behind its dialogue so far."""
    examples = parts.task.examples(split, reasoned=False)
    return Sequences(tuple(e.sequence for e in examples), tuple(e.target_mask for e in examples))


def tune(
    parts: Parts,
    stop: StopRequest,
    params: Params,
    train: Sequences,
    numbers: LanguageModelConfig,
    *,
    before: str,
    after: str,
) -> None:
    """Train, and print a Markdown table of the model before and after, greedily, on the split of choices.

    Args:
        parts: of the run, of which nothing is changed.
        stop: asked between steps.
        params: where training starts.
        train: what is learnt.
        numbers: of training.
        before, after: names of the model in the table.
    """
    graphdef, pad, watched = parts.language_model[0], parts.task.pad_id, people(parts, parts.select)
    print("| model | loss | Inform | Success | BLEU | Combined | distinct 3-grams |\n|---|" + "---:|" * 6)
    loss = language_model.evaluate_loss(graphdef, params, watched, numbers, pad)
    _show(parts, before, params, loss)
    with tempfile.TemporaryDirectory() as folder:
        tuned, found = language_model.fit(
            "supervised",
            graphdef,
            params,
            train,
            watched,
            numbers,
            run_dir=Path(folder),
            seed=parts.config.seed,
            pad_id=pad,
            drop_id=parts.task.drop_id,
            stop=stop,
        )
    _show(parts, after, tuned, found["dev_loss"])


def _show(parts: Parts, name: str, params: Params, loss: float) -> None:
    scores = parts.task.score(parts.decoding.predict(params, parts.select, label=name), parts.select)
    cells = (f"{scores[key]:.2f}" for key in COLUMNS)
    print(f"| {name} | {loss:.4f} | {' | '.join(cells)} | {scores['richness']['num_trigrams']} |", flush=True)
