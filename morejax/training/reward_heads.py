"""Learned rewards: a head that tells human replies from the model's own, on the frozen supervised trunk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from morejax import hosts
from morejax.models.heads import RewardHead, pool
from morejax.models.split import Params, merge, split
from morejax.rollout import token_logp
from morejax.training.batching import left_pad
from morejax.training.placement import ONE_DEVICE, Placement

Ids = tuple[int, ...]


@dataclass(frozen=True)
class RewardHeadConfig:
    """The naturalness head."""

    examples: int = 8000
    """Human replies to learn from; as many samples of the model stand against them."""
    held_out: int = 2000
    """Human replies of the selection split on which accuracy and calibration are measured."""
    hidden: int = 64
    """Hidden width of the head."""
    steps: int = 1000
    """Optimizer steps."""
    batch: int = 256
    """Replies of a batch, half of them human."""
    learning_rate: float = 1e-3
    """AdamW step size (cosine decay)."""
    weight_decay: float = 0.01
    """AdamW weight decay."""


def judge(
    graphdef: nnx.GraphDef,
    head_graphdef: nnx.GraphDef,
    params: Params,
    head: Params,
    tokens: jax.Array,
    mask: jax.Array,
    context: int,
) -> tuple[jax.Array, jax.Array]:
    """What the frozen model thinks of replies: one forward pass serves fluency and naturalness.

    Args:
        graphdef, params: frozen language model.
        head_graphdef, head: naturalness head.
        tokens, mask: i32[S, C+T], bool[S, C+T].
        context: C.

    Returns:
        Mean token log-probability f32[S], nats, and probability of being human f32[S].
    """
    logp, features = reply_features(graphdef, params, tokens, mask, context)
    return logp, jax.nn.sigmoid(merge(head_graphdef, head)(features))


def reply_features(
    graphdef: nnx.GraphDef, params: Params, tokens: jax.Array, mask: jax.Array, context: int
) -> tuple[jax.Array, jax.Array]:
    """Mean token log-probability f32[S], nats, and pooled hidden states f32[S, 2D] of the replies."""
    model = merge(graphdef, params)
    hidden = model.hidden(tokens, mask)
    valid = mask[:, context:]
    logps = token_logp(jax.nn.log_softmax(model.logits(hidden[:, context - 1 : -1]), -1), tokens[:, context:])
    mean = jnp.where(valid, logps, 0.0).sum(-1) / jnp.maximum(valid.sum(-1), 1)
    # The hidden state at a reply's token has read that token: what a judge should see.
    return mean, pool(hidden[:, context:], valid)


def features_of(
    graphdef: nnx.GraphDef,
    params: Params,
    prompts: Sequence[Ids],
    replies: Sequence[Ids],
    *,
    context: int,
    reply: int,
    pad_id: int,
    batch: int = 256,
    placement: Placement = ONE_DEVICE,
) -> tuple[np.ndarray, np.ndarray]:
    """`reply_features` of many replies, in batches: log-probabilities f32[N] and features f32[N, 2D]."""
    batch = placement.whole_rows(batch)
    logps, features = [], []
    for start in range(0, len(prompts), batch):
        rows = slice(start, start + batch)
        tokens, mask = pack(prompts[rows], replies[rows], context, reply, pad_id, batch)
        found = _reply_features(graphdef, params, *placement.rows((tokens, mask)), context)
        logp, feature = hosts.to_host(found)
        count = len(prompts[rows])
        logps.append(logp[:count])
        features.append(feature[:count])
    return np.concatenate(logps), np.concatenate(features)


def head_logits(graphdef: nnx.GraphDef, head: Params, features: np.ndarray) -> np.ndarray:
    """What a head makes of features f32[N, 2D] that every process holds: f32[N], on the host."""
    return hosts.to_host(_head_logits(graphdef, head, features))


@partial(jax.jit, static_argnames="graphdef")
def _head_logits(graphdef, head, features):
    return merge(graphdef, head)(features)


# One compilation for all calls with the same model and sizes.
_reply_features = jax.jit(reply_features, static_argnames=("graphdef", "context"))


def pack(
    prompts: Sequence[Ids], replies: Sequence[Ids], context: int, reply: int, pad_id: int, rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Left-padded prompts and right-padded replies as i32[rows, C+T] with their mask; missing rows are padding."""
    tokens = np.full((rows, context + reply), pad_id, np.int32)
    mask = np.zeros((rows, context + reply), bool)
    count = len(prompts)
    tokens[:count, :context], mask[:count, :context] = left_pad(prompts, context, pad_id)
    for row, ids in enumerate(replies):
        ids = ids[:reply]
        tokens[row, context : context + len(ids)] = ids
        mask[row, context : context + len(ids)] = True
    return tokens, mask


def fit_head(
    features: np.ndarray, human: np.ndarray, width: int, config: RewardHeadConfig, *, seed: int
) -> tuple[nnx.GraphDef, Params]:
    """Train a `RewardHead` by logistic regression on features f32[N, 2D] with labels bool[N] (human or not)."""
    graphdef, params = split(RewardHead(width, hidden=config.hidden, rngs=nnx.Rngs(seed)))
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    tx = optax.adamw(schedule, weight_decay=config.weight_decay)
    data, labels = jnp.asarray(features), jnp.asarray(human, jnp.float32)

    def loss(params, rows):
        logits = merge(graphdef, params)(data[rows])
        return optax.sigmoid_binary_cross_entropy(logits, labels[rows]).mean()

    def step(carry, key):
        params, opt_state = carry
        rows = jax.random.randint(key, (config.batch,), 0, len(data))
        grads = jax.grad(loss)(params, rows)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    keys = jax.random.split(jax.random.key(seed), config.steps)
    (params, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, keys))((params, tx.init(params)))
    return graphdef, params


def calibration(probability: np.ndarray, human: np.ndarray, bins: int = 10) -> dict[str, Any]:
    """Held-out quality of a head: accuracy, area under the ROC curve, Brier score and reliability bins.

    Args:
        probability: f64[N], predicted probability of "human".
        human: bool[N].
        bins: equal-width bins of the reliability table.

    Returns:
        {"accuracy", "auc", "brier", "ece", "examples", "bins": [{"confidence", "accuracy", "count"}, ...]}, where ECE
        is the mean distance of confidence and accuracy, weighted by the bins' counts (Guo et al. 2017, 1706.04599).
    """
    human = human.astype(bool)
    # Equal probabilities share their mean rank: half of such pairs count as ordered.
    _, place, count = np.unique(probability, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[place]
    positive, negative = human.sum(), (~human).sum()
    auc = (ranks[human].sum() - positive * (positive + 1) / 2) / max(positive * negative, 1)
    index = np.minimum((probability * bins).astype(int), bins - 1)
    table = [
        {
            "confidence": float(probability[index == b].mean()),
            "accuracy": float(human[index == b].mean()),
            "count": int((index == b).sum()),
        }
        for b in range(bins)
        if (index == b).any()
    ]
    ece = sum(row["count"] * abs(row["confidence"] - row["accuracy"]) for row in table) / max(len(human), 1)
    return {
        "accuracy": float(((probability >= 0.5) == human).mean()),
        "auc": float(auc),
        "brier": float(((probability - human) ** 2).mean()),
        "ece": float(ece),
        "examples": len(human),
        "bins": table,
    }
