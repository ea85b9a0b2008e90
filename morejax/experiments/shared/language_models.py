"""The stages that learn from the corpus's own replies: `supervised` and `scaffold`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from morejax.experiments.shared.parts import RunParts
from morejax.models.split import Params
from morejax.training import language_model
from morejax.training.batching import Sequences
from morejax.training.checkpoint import save_params
from morejax.training.language_model import LanguageModelConfig
from morejax.training.task import Example


def supervised(parts: RunParts) -> dict[str, Any]:
    """Language modelling of replies (and states, end to end) in the direct form that the policy uses."""
    return _fit(parts, "supervised", parts.fresh(), parts.config.supervised, reasoned=False)


def scaffold(parts: RunParts) -> dict[str, Any]:
    """Language modelling of acts and replies, from the supervised parameters; frozen afterwards."""
    return _fit(parts, "scaffold", parts.load("supervised"), parts.config.scaffold, reasoned=True)


def _fit(parts: RunParts, stage: str, params: Params, config: LanguageModelConfig, *, reasoned: bool) -> dict[str, Any]:
    train = _sequences(parts.learnt(reasoned=reasoned))
    dev = _sequences(parts.task.examples(parts.select, reasoned=reasoned))
    params, numbers = language_model.fit(
        stage,
        parts.language_model[0],
        params,
        train,
        dev,
        config,
        run_dir=parts.dir,
        seed=parts.config.seed,
        pad_id=parts.task.pad_id,
        drop_id=parts.task.drop_id,
        stop=parts.stop,
        placement=parts.placement,
    )
    save_params(parts.dir / "checkpoints" / f"{stage}-final", params, numbers)
    return dict(numbers)


def _sequences(examples: Sequence[Example]) -> Sequences:
    return Sequences(tuple(e.sequence for e in examples), tuple(e.target_mask for e in examples))
