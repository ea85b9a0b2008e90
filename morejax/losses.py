"""Per-token losses of the policy and the critic, with their exact derivatives.

Functions return one number per token (and stream); the mean over valid tokens is the caller's, through
`collectives.masked_mean`. The derivatives are written out because the step needs them as data: the
gradient of every stream's surrogate is ``sum_n c_n grad log pi(y_n)``, so K gradients share one Jacobian
and differ only in the scalars ``c_n``. Logarithms are natural: KL and entropy are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from morejax.collectives import masked_moments

Scalar = float | jax.Array

LOSS_MEANS = ("token", "sequence")


def ratio(logp: jax.Array, logp_old: jax.Array) -> jax.Array:
    """Importance ratio ``rho = pi(y) / pi_old(y) = exp(logp - logp_old)``, elementwise.

    Args:
        logp: f32[...], log-probability of the sampled token now, in nats.
        logp_old: f32[...], the same under the policy that sampled it.

    Returns:
        f32[...] > 0.
    """
    chex.assert_equal_shape([logp, logp_old])
    return jnp.exp(logp - logp_old)


def token_weights(resp_mask: jax.Array, how: str) -> jax.Array:
    """Weight of every token in the mean over a batch: all tokens alike, or all sequences alike.

        token       w_t = m_t                 sum w x / sum w is the mean over tokens
        sequence    w_t = m_t / length        sum w x / sum w is the mean over sequences of their means

    Args:
        resp_mask: bool[S, T], valid response tokens.
        how: ``"token"`` or ``"sequence"``.

    Returns:
        f32[S, T], 0 on padding; their sum is the number of tokens, or of sequences with any token.

    Raises:
        ValueError: if ``how`` is unknown.

    Source: sequence: GRPO, arXiv 2402.03300, eq. 3; token: DAPO, arXiv 2503.14476, sec. 3.3.
    """
    if how not in LOSS_MEANS:
        raise ValueError(f"loss_mean is {how!r}, expected one of {', '.join(LOSS_MEANS)}")
    chex.assert_rank(resp_mask, 2)
    weights = resp_mask.astype(jnp.float32)
    if how == "token":
        return weights
    return weights / jnp.maximum(weights.sum(1, keepdims=True), 1.0)


def clipped_surrogate(
    ratio: jax.Array, advantages: jax.Array, clip_low: Scalar, clip_high: Scalar, dual_clip: Scalar = math.inf
) -> jax.Array:
    """PPO's clipped surrogate of every stream: ``min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A)``.

    With a dual clip c it is for A < 0 at least c A: ``max(min(rho A, clip(rho) A), c A)``. PPO alone has no bound
    there, and a token that has become much more likely (stale or off-policy data) can swamp the batch.

    Args:
        ratio: f32[...], importance ratio of each token.
        advantages: f32[..., H].
        clip_low: width of the clip below 1 (0.2: not under 0.8).
        clip_high: width of the clip above 1 (0.2: not over 1.2).
        dual_clip: c > 1, largest ratio that counts against a token of negative advantage (3 in the paper);
            infinite for PPO alone.

    Returns:
        f32[..., H], to be maximised.

    Source: Schulman et al., "Proximal Policy Optimization Algorithms", arXiv 1707.06347, eq. 7; dual clip: Ye et
    al., "Mastering Complex Control in MOBA Games with Deep Reinforcement Learning", arXiv 1912.09729, eq. 5.
    """
    chex.assert_shape(ratio, advantages.shape[:-1])
    rho = ratio[..., None]
    # For c > 1 bounding rho is the same, and for A = 0 and c infinite it is not the NaN that c A would be.
    rho = jnp.where(advantages < 0, jnp.minimum(rho, dual_clip), rho)
    clipped = jnp.clip(rho, 1.0 - clip_low, 1.0 + clip_high)
    return jnp.minimum(rho * advantages, clipped * advantages)


def _unclipped(
    rho: jax.Array, advantages: jax.Array, clip_low: Scalar, clip_high: Scalar, dual_clip: Scalar
) -> jax.Array:
    """Where the surrogate still follows rho: a gain below the upper edge, a loss between the lower one and c."""
    loss = (rho >= 1.0 - clip_low) & (rho <= dual_clip)
    return jnp.where(advantages >= 0, rho <= 1.0 + clip_high, loss)


def surrogate_coefficients(
    ratio: jax.Array, advantages: jax.Array, clip_low: Scalar, clip_high: Scalar, dual_clip: Scalar = math.inf
) -> jax.Array:
    """Derivative of `clipped_surrogate` by ``logp``: ``A rho 1[not clipped for that stream]``.

    Args:
        ratio: f32[...], importance ratio of each token.
        advantages: f32[..., H].
        clip_low: width of the clip below 1.
        clip_high: width of the clip above 1.
        dual_clip: largest ratio that counts against a token of negative advantage; infinite for none.

    Returns:
        f32[..., H]; `jnp.sum(a * coefficients, -1)` is the derivative of ``sum_i a_i`` surrogate_i.
    """
    chex.assert_shape(ratio, advantages.shape[:-1])
    rho = ratio[..., None]
    return jnp.where(_unclipped(rho, advantages, clip_low, clip_high, dual_clip), advantages * rho, 0.0)


def mixed_coefficients(
    ratio: jax.Array,
    advantages: jax.Array,
    stream_weights: jax.Array,
    clip_low: Scalar,
    clip_high: Scalar,
    dual_clip: Scalar = math.inf,
) -> jax.Array:
    """Derivative by ``logp`` of ONE clipped surrogate with the mixed advantage ``A = sum_i a_i A_i``.

    For non-negative weights ``sum_i a_i min(rho A_i, clip A_i) <= min(rho A, clip A)``: clipping per stream
    is the more conservative of the two. At rho = 1 they agree.

    Args:
        ratio: f32[...], importance ratio of each token.
        advantages: f32[..., H].
        stream_weights: f32[H], the mixing coefficients a.
        clip_low: width of the clip below 1.
        clip_high: width of the clip above 1.
        dual_clip: largest ratio that counts where the mixed advantage is negative; infinite for none.

    Returns:
        f32[...].
    """
    mixed = mix_streams(advantages, stream_weights)
    return surrogate_coefficients(ratio, mixed[..., None], clip_low, clip_high, dual_clip)[..., 0]


def mix_streams(per_stream: jax.Array, stream_weights: jax.Array) -> jax.Array:
    """Weighted sum over the streams, ``sum_i a_i x_i``, in full float32.

    Args:
        per_stream: f32[..., H].
        stream_weights: f32[H].

    Returns:
        f32[...].
    """
    chex.assert_shape(stream_weights, per_stream.shape[-1:])
    # Not a matmul: on recent GPUs its default precision is TF32, three digits.
    return jnp.sum(per_stream * jnp.broadcast_to(stream_weights, per_stream.shape), axis=-1)


def _log_ratio(logp: jax.Array, ref_logp: jax.Array, p: jax.Array) -> jax.Array:
    """log pi - log ref where pi > 0, else 0: a token that pi excludes adds nothing to the KL."""
    possible = p > 0
    return jnp.where(possible, logp, 0.0) - jnp.where(possible, ref_logp, 0.0)


def kl_full(logits: jax.Array, ref_logp: jax.Array) -> jax.Array:
    """Exact reverse KL over the vocabulary, ``KL(pi || ref) = sum_v pi_v (log pi_v - log ref_v)``.

    Args:
        logits: [..., V], unnormalised scores of the policy; computed in float32 whatever comes in.
        ref_logp: f32[..., V], log-probabilities of the reference.

    Returns:
        f32[...], nats; infinite where the reference excludes a token that the policy allows.
    """
    return kl_full_grad(jax.nn.log_softmax(logits.astype(jnp.float32)), ref_logp)[0]


def kl_full_grad(logp_all: jax.Array, ref_logp: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Exact ``KL(pi || ref)`` and its gradient by the policy's logits, ``pi (log pi - log ref - KL)``.

    Args:
        logp_all: f32[..., V], log-probabilities of the policy over the vocabulary.
        ref_logp: f32[..., V], log-probabilities of the reference.

    Returns:
        kl f32[...] in nats and the gradient f32[..., V] (it sums to 0 over the vocabulary).
    """
    chex.assert_equal_shape([logp_all, ref_logp])
    p = jnp.exp(logp_all)
    log_ratio = _log_ratio(logp_all, ref_logp, p)
    kl = jnp.sum(p * log_ratio, axis=-1)
    return kl, p * (log_ratio - kl[..., None])


def kl_k1(logp: jax.Array, logp_ref: jax.Array) -> jax.Array:
    """Single-sample estimate ``k1 = log pi - log ref`` of KL(pi || ref): unbiased, can be negative.

    Args:
        logp: f32[...], log-probability of the sampled token under the policy, nats.
        logp_ref: f32[...], the same under the reference.

    Returns:
        f32[...], nats.

    Source: J. Schulman, "Approximating KL Divergence", http://joschu.net/blog/kl-approx.html.
    """
    chex.assert_equal_shape([logp, logp_ref])
    return logp - logp_ref


def kl_k2(logp: jax.Array, logp_ref: jax.Array) -> jax.Array:
    """Single-sample estimate ``k2 = (log pi - log ref)^2 / 2``: biased, low variance, never negative.

    Args and source: as `kl_k1`.

    Returns:
        f32[...], nats.
    """
    return 0.5 * jnp.square(kl_k1(logp, logp_ref))


def kl_k3(logp: jax.Array, logp_ref: jax.Array) -> jax.Array:
    """Single-sample estimate ``k3 = ref/pi - 1 - log(ref/pi)``: unbiased, low variance, never negative.

    Args and source: as `kl_k1`.

    Returns:
        f32[...], nats.
    """
    k1 = kl_k1(logp, logp_ref)
    # expm1: near pi = ref, exp(-k1) - 1 + k1 would cancel to rounding noise.
    return jnp.expm1(-k1) + k1


KL_ESTIMATORS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "k1": kl_k1,
    "k2": kl_k2,
    "k3": kl_k3,
}


def kl_coefficient(kind: str, logp: jax.Array, logp_ref: jax.Array) -> jax.Array:
    """Derivative of a KL estimator by ``logp``: what it does when used as a loss.

        k1   1                        zero mean gradient: useless as a loss, meant for the reward
        k2   log pi - log ref         mean gradient of the reverse KL(pi || ref)
        k3   1 - exp(log ref - log pi)    mean gradient of the FORWARD KL(ref || pi)

    Args:
        kind: ``"k1"``, ``"k2"`` or ``"k3"``.
        logp: f32[...], log-probability of the sampled token under the policy, nats.
        logp_ref: f32[...], the same under the reference.

    Returns:
        f32[...].

    Raises:
        ValueError: if ``kind`` is unknown.
    """
    k1 = kl_k1(logp, logp_ref)
    if kind == "k1":
        return jnp.ones_like(k1)
    if kind == "k2":
        return k1
    if kind == "k3":
        return -jnp.expm1(-k1)
    raise ValueError(f"KL estimator is {kind!r}, expected one of {', '.join(KL_ESTIMATORS)}")


def entropy_and_grad(logp_all: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Entropy ``E = -sum_v pi_v log pi_v`` and its gradient by the logits, ``-pi (log pi + E)``.

    Args:
        logp_all: f32[..., V], log-probabilities over the vocabulary.

    Returns:
        entropy f32[...] in nats and the gradient f32[..., V].
    """
    p = jnp.exp(logp_all)
    log_p = jnp.where(p > 0, logp_all, 0.0)
    entropy = -jnp.sum(p * log_p, axis=-1)
    return entropy, -p * (log_p + entropy[..., None])


def value_loss(values: jax.Array, returns: jax.Array, values_old: jax.Array, clip_range: Scalar | None) -> jax.Array:
    """Clipped squared error of the critic, elementwise: ``0.5 max((V - R)^2, (V_clip - R)^2)``.

    ``V_clip = V_old + clip(V - V_old, -clip_range, clip_range)``; without a range just ``0.5 (V - R)^2``.

    Args:
        values: f32[...], values now.
        returns: f32[...], their targets, in the same unit.
        values_old: f32[...], values at sampling time.
        clip_range: how far a value may move from its old one before its gradient stops, in the unit of the
            values; ``None`` for no clip.

    Returns:
        f32[...].

    Source: the reference PPO code (openai/baselines ppo2); arXiv 1707.06347 has the unclipped form.
    """
    chex.assert_equal_shape([values, returns, values_old])
    plain = jnp.square(values - returns)
    if clip_range is None:
        return 0.5 * plain
    near = values_old + jnp.clip(values - values_old, -clip_range, clip_range)
    return 0.5 * jnp.maximum(plain, jnp.square(near - returns))


def explained_variance(
    values: jax.Array, returns: jax.Array, mask: jax.Array, axis_name: str | None = None
) -> jax.Array:
    """Share of the returns' variance that the critic explains: ``1 - Var(R - V) / Var(R)`` per stream.

    Args:
        values: f32[..., H].
        returns: f32[..., H], in the same unit.
        mask: bool[..., H], which entries count.
        axis_name: device axis to reduce over, or ``None``.

    Returns:
        f32[H], at most 1, negative when the critic is worse than a constant; 0 for a stream whose returns
        do not vary, or by no more than the rounding of advantage + value.
    """
    chex.assert_equal_shape([values, returns, mask])
    mean, spread, _ = masked_moments(returns, mask, axis_name)
    bias, residual, _ = masked_moments(returns - values, mask, axis_name)
    # Returns are sums of advantages and values: where they are constant, what is left is the values' rounding.
    size = jnp.maximum(jnp.maximum(jnp.abs(mean), jnp.abs(bias)), residual)
    varies = spread > 1e-6 * jnp.maximum(size, 1e-6)
    relative = residual / jnp.where(varies, spread, 1.0)
    return jnp.where(varies, 1.0 - jnp.square(relative), 0.0)


def update_kl_coef(beta: Scalar, kl: Scalar, target: Scalar, gain: Scalar, bound: Scalar = 0.2) -> jax.Array:
    """Adaptive KL coefficient: ``beta <- beta (1 + gain clip(KL / target - 1, -bound, bound))``.

    Args:
        beta: current coefficient.
        kl: measured KL to the reference, nats per token.
        target: wanted KL, nats per token, > 0.
        gain: step size; 0 leaves beta fixed.
        bound: largest relative error acted on.

    Returns:
        f32 scalar; positive as long as ``beta > 0`` and ``gain * bound < 1``.

    Source: Ziegler et al., "Fine-Tuning Language Models from Human Preferences", arXiv 1909.08593, sec. 2.2.
    """
    error = jnp.clip(kl / target - 1.0, -bound, bound)
    return jnp.asarray(beta * (1.0 + gain * error), jnp.float32)
