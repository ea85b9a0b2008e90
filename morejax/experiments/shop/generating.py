"""The stage `generate`: makes the corpus and measures what its people get right."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from morejax import hosts
from morejax.experiments.shop.parts import ShopParts
from morejax.tasks.shop import judge_texts
from morejax.tasks.shop.ontology import FUNCTIONS
from morejax.training.run import write_json

SHOWN = 20
"""Dialogues that are written out for people to read."""


def make_corpus(parts: ShopParts) -> dict[str, Any]:
    """Generate all splits; writes corpus.json (sizes, and how often the corpus's replies are right) and some samples.

    Nothing else is kept: a split is a pure function of the configuration and is made again when it is needed.
    """
    about = {name: _describe(parts, name) for name in parts.corpus.sizes}
    write_json(parts.dir / "corpus.json", about)
    lines = (json.dumps(_shown(dialogue)) for dialogue in parts.corpus.dialogues("train")[:SHOWN])
    (parts.dir / "corpus_samples.jsonl").write_text("".join(line + "\n" for line in lines))
    train = about["train"]
    hosts.say(
        f"generate: {train['dialogues']} dialogues with {train['turns']} turns to learn from, prompts of "
        f"{train['prompt_tokens']:.0f} and replies of {train['reply_tokens']:.0f} tokens (medians); the corpus's "
        f"replies are right in {100 * np.mean(list(train['people'].values())):.1f} % of what is checked"
    )
    return {name: row["turns"] for name, row in about.items()}


def _describe(parts: ShopParts, name: str) -> dict[str, Any]:
    split = parts.corpus.split(name)
    turns = [turn for dialogue in split.dialogues for turn in dialogue.turns]
    verdict = judge_texts([turn.response for turn in turns], split.gold)
    prompts = [prompt for dialogue in split.dialogues for prompt in parts.task.prompts(dialogue)]
    right = verdict.score.sum(0) / np.maximum(verdict.applies.sum(0), 1)
    return {
        "dialogues": len(split.dialogues),
        "turns": len(turns),
        "prompt_tokens": float(np.median([len(prompt.direct) for prompt in prompts])),
        "reply_tokens": float(np.median([len(prompt.reference) for prompt in prompts])),
        "people": dict(zip(FUNCTIONS, map(float, right), strict=True)),
    }


def _shown(dialogue) -> dict[str, Any]:
    turns = [{"user": turn.user, "agent": turn.response, "asked": turn.asked} for turn in dialogue.turns]
    return {"id": dialogue.id, "domain": dialogue.domain, "turns": turns}
