"""The stage `reward_heads`: is a reply a person's or the model's? And how likely are people's replies (fluency)?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from flax import nnx

from morejax import hosts
from morejax.experiments.shared.parts import RunParts
from morejax.models import RewardHead
from morejax.models.split import Params
from morejax.training import reward_heads as heads
from morejax.training.checkpoint import save_params
from morejax.training.initialise import structure
from morejax.training.run import write_json
from morejax.training.task import Ids


def reward_heads(parts: RunParts) -> dict[str, Any]:
    """Naturalness head on the frozen supervised trunk, and the corpus's likelihood range for fluency."""
    config, params = parts.config.reward, parts.load("supervised")
    fit = _judged(parts, params, parts.fit, config.examples, seed=1)
    held_out = _judged(parts, params, parts.select, config.held_out, seed=2)
    width, seed = parts.model_config.width, parts.config.seed
    # Small enough for every process to do alike, on a device of its own.
    graphdef, head = heads.fit_head(fit["features"], fit["human"], width, config, seed=seed)
    logits = heads.head_logits(graphdef, head, held_out["features"]).astype(np.float64)
    quality = heads.calibration(1 / (1 + np.exp(-logits)), held_out["human"])
    human_logp = fit["logp"][fit["human"]]
    low, high = (float(np.percentile(human_logp, share)) for share in (5, 95))
    hosts.on_main(lambda: write_json(parts.dir / "reward_heads.json", {"naturalness": quality}))
    head = hosts.place_global(head, _head_shardings(parts, head))
    save_params(parts.dir / "checkpoints" / "reward_heads-final", head, {"fluency_range": [low, high]})
    hosts.say(
        f"reward_heads: naturalness held-out accuracy {quality['accuracy']:.3f}, auc {quality['auc']:.3f}, "
        f"ece {quality['ece']:.3f}; fluency range [{low:.2f}, {high:.2f}] nats per token"
    )
    return {"accuracy": quality["accuracy"], "auc": quality["auc"], "fluency_range": [low, high]}


def load_head(parts: RunParts) -> tuple[nnx.GraphDef, Params]:
    """Graph and parameters of the trained head.

    Raises:
        FileNotFoundError: the stage has not been run in this folder.
    """
    width, hidden = parts.model_config.width, parts.config.reward.hidden
    graphdef, like = structure(lambda: RewardHead(width, hidden=hidden, rngs=nnx.Rngs(0)))
    return graphdef, parts.load("reward_heads", like, _head_shardings(parts, like))


def _head_shardings(parts: RunParts, head: Params) -> Params:
    """The rules know the head's parameters as `reward/...`."""
    return parts.placement.of_params({"reward": head})["reward"]


def fluency_range(parts: RunParts) -> tuple[float, float]:
    """Log-likelihoods per token, nats, between which nine in ten of people's replies lie.

    Raises:
        FileNotFoundError: the stage has not been run in this folder.
    """
    record = parts.run.stage_record("reward_heads")
    if record is None:
        raise FileNotFoundError(f"{parts.dir}: the ppo stage needs the reward_heads stage; add it to --stages")
    low, high = record["fluency_range"]
    return low, high


def features(
    parts: RunParts, params: Params, prompts: Sequence[Ids], replies: Sequence[Ids]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean log-likelihoods f32[n] of replies under the frozen supervised model, and the head's inputs f32[n, 2 D]."""
    context = parts.config.context
    return heads.features_of(
        parts.language_model[0],
        params,
        prompts,
        replies,
        context=context.max_context,
        reply=context.max_reply,
        pad_id=parts.task.pad_id,
        placement=parts.placement,
    )


def _judged(parts: RunParts, params: Params, splits: str, count: int, seed: int) -> dict[str, np.ndarray]:
    """Human replies and samples of the model to the same prompts, with their features."""
    prompts = [prompt for dialogue in parts.corpus.dialogues(splits) for prompt in parts.task.prompts(dialogue)]
    chosen = np.random.default_rng([parts.config.seed, seed]).permutation(len(prompts))[:count]
    direct = [prompts[row].direct for row in chosen]
    human = [prompts[row].reference for row in chosen]
    drawn = parts.decoding.sample(params, direct, seed, f"reward_heads samples {splits}")
    logp, found = features(parts, params, direct * 2, human + drawn)
    return {"logp": logp, "features": found, "human": np.arange(len(logp)) < len(human)}
