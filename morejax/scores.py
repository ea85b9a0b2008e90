"""J of the reward streams: scores of sequences, their weighted means over a rollout, and their other moments."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from morejax.collectives import masked_moments, psum
from morejax.losses import mix_streams
from morejax.rollout import Rollout


def mean_scores(rollout: Rollout, axis_name: str | None = None) -> tuple[jax.Array, jax.Array]:
    """J of every reward stream: sum(weight score) / sum(weight) over the sequences it applies to.

    Returns:
      J f32[K + M] (0 where nothing applies) and the weight behind it f32[K + M].
    """
    scores, weights = sequence_scores(rollout)
    total, count = psum((scores * weights).sum(0), axis_name), psum(weights.sum(0), axis_name)
    return jnp.where(count > 0, total / jnp.where(count > 0, count, 1.0), 0.0), count


def sequence_scores(rollout: Rollout) -> tuple[jax.Array, jax.Array]:
    """Scores f32[S, K + M] of the sequences and their weights in J, both 0 where a stream does not apply."""
    rewards = jnp.concatenate([rollout.objectives, rollout.constraints], axis=-1)
    summed = jnp.where(rollout.resp_mask[..., None], rewards, 0.0).sum(1)
    scores = summed if rollout.scores is None else rollout.scores
    weights = jnp.ones_like(scores) if rollout.score_weights is None else rollout.score_weights
    # Under a mask, not by a product: a score that does not apply may be anything, NaN included.
    scores, weights = (jnp.where(rollout.applies, x, 0.0) for x in (scores, weights))
    return scores, weights.astype(jnp.float32)


def score_moments(
    scores: jax.Array, weights: jax.Array, mix: jax.Array, axis_name: str | None = None
) -> dict[str, jax.Array]:
    """Mean, standard deviation and correlation with the weighted sum of the objectives' scores over sequences.

    Args:
      scores: f32[S, K], 0 where an objective does not apply.
      weights: f32[S, K], 0 there; sequences with any other weight count alike.
      mix: f32[K], weights of the objectives in the sum.
      axis_name: device axis to sum over.

    Returns:
      {"mean": f32[K], "std": f32[K], "corr": f32[K]}; a correlation without spread is 0.
    """
    mask = weights > 0
    total = mix_streams(scores, mix)
    mean, std, _ = masked_moments(scores, mask, axis_name)
    sums = jnp.broadcast_to(total[:, None], scores.shape)
    mean_sum, std_sum, _ = masked_moments(sums, mask, axis_name)
    products = (scores - mean[None, :]) * (sums - mean_sum[None, :])
    covariance, _, _ = masked_moments(products, mask, axis_name)
    spread = std * std_sum
    present = spread > 1e-12
    return {"mean": mean, "std": std, "corr": jnp.where(present, covariance / jnp.where(present, spread, 1.0), 0.0)}
