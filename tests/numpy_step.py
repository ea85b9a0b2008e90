"""The whole training step once more, slowly: plain NumPy in float64, for the golden test.

Written from the documentation's formulas, not from the library's code, of which nothing is used. `config` and
`numbers` are read by attribute only; rollout and state are plain dicts of arrays. The rules of multipliers and weights
are in `numpy_rules`, the minibatches in `numpy_updates`, the rest is here.

Sizes: S sequences, T response positions, K objectives, M constraints, H streams.
"""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import numpy_rules as rules
from numpy_updates import Updates, flatten, like

SCALE_DECAY = 0.9


def train_step(state, rollout, config, numbers):
    """One step: the new state and the metrics."""
    objectives = len(config.objectives)
    old, state = state, dict(state)
    rewards, applies = reward_streams(rollout, config, numbers)
    mask = rollout["resp_mask"][:, :, None] & applies[:, None, :]
    scores, score_weights = sequence_scores(rollout)
    j, counts = mean_scores(scores, score_weights, rollout["applies"])
    thresholds = [numbers.thresholds[name] for name in config.constraints]
    state["multipliers"], violations = rules.move_multipliers(
        old["multipliers"], j[objectives:], counts[objectives:], thresholds, config.multipliers, numbers
    )
    _update_objective_scores(state, j[:objectives], counts[:objectives], numbers.score_ema)
    advantages, returns, explained = advantages_of(rewards, mask, rollout, old["value_scale"], config, numbers)
    sigma = stream_stds(advantages, mask)
    advantages = normalise(advantages, mask, old, state, rollout, config, numbers)
    if config.multipliers == "hinge":
        advantages = hold_violating_prompts(advantages, scores, rollout, thresholds, objectives)
    _update_scales(state, old, sigma, returns, mask)
    update = Updates(state, old, rollout, advantages, returns, applies, scores, counts, config, numbers)
    logs = update.run()
    state |= {"params": update.params, "adam": update.adam, "weights": update.weights, "step": old["step"] + 1}
    made = [log for log in logs if log["made"]] or logs
    mean = {name: np.mean([log[name] for log in made], axis=0) for name in made[0]}
    _steer_kl(state, float(mean["kl"]), config, numbers)
    return state, metrics(state, old, mean, logs, j, violations, explained, thresholds, config, numbers)


# ---- rewards, scores ------------------------------------------------------------------------------------------------


def by_stream(config, numbers, name):
    """A number per stream: the stream's own, or the common one."""
    own = getattr(numbers, f"stream_{name}")
    return np.array([own.get(stream, getattr(numbers, name)) for stream in config.streams])


def reward_streams(rollout, config, numbers):
    """Rewards [S, T, H], 0 where a stream does not apply, and applies [S, H]."""
    applies = rollout["applies"]
    rewards = np.concatenate([rollout["objectives"], rollout["constraints"]], axis=-1).astype(float)
    rewards[~rollout["resp_mask"]] = 0.0
    rewards[~np.broadcast_to(applies[:, None, :], rewards.shape)] = 0.0
    if rollout.get("dialogue") is not None:
        discount, totals = by_stream(config, numbers, "gamma_turn"), rewards.sum(1)
        for s, other in itertools.product(range(len(totals)), repeat=2):
            ahead = int(rollout["turn"][other]) - int(rollout["turn"][s])
            if rollout["dialogue"][s] != rollout["dialogue"][other] or ahead <= 0:
                continue
            last = np.flatnonzero(rollout["resp_mask"][s])[-1]
            for i in np.flatnonzero(applies[s]):
                rewards[s, last, i] += discount[i] ** ahead * totals[other, i]
    if config.kl == "k1_reward":
        kl = np.where(rollout["resp_mask"], rollout["logp_old"].astype(float) - rollout["logp_ref"], 0.0)
        rewards = np.concatenate([rewards, -kl[..., None]], axis=-1)
        applies = np.concatenate([applies, np.ones((len(applies), 1), bool)], axis=-1)
    return rewards, applies


def sequence_scores(rollout):
    """Scores [S, K+M] of the sequences and their weights."""
    rewards = np.concatenate([rollout["objectives"], rollout["constraints"]], axis=-1).astype(float)
    scores = (rewards * rollout["resp_mask"][..., None]).sum(1)
    if rollout.get("scores") is not None:
        scores = rollout["scores"].astype(float)
    weights = np.ones(scores.shape)
    if rollout.get("score_weights") is not None:
        weights = rollout["score_weights"].astype(float)
    return scores, weights * rollout["applies"]


def mean_scores(scores, weights, applies):
    """J [K+M], 0 where a stream applies nowhere, and the weight behind it."""
    counts = weights.sum(0)
    totals = np.where(applies, scores * weights, 0.0).sum(0)
    return np.array([t / c if c > 0 else 0.0 for t, c in zip(totals, counts, strict=True)]), counts


def _update_objective_scores(state, j, counts, decay):
    for name in ("score_ema", "score_initial", "score_seen"):
        state[name] = state[name].copy()
    for k in np.flatnonzero(counts > 0):
        if state["score_seen"][k] == 0:
            state["score_ema"][k] = state["score_initial"][k] = j[k]
        else:
            state["score_ema"][k] = decay * state["score_ema"][k] + (1 - decay) * j[k]
        state["score_seen"][k] += 1


# ---- advantages -----------------------------------------------------------------------------------------------------


def advantages_of(rewards, mask, rollout, value_scale, config, numbers):
    """Advantages and returns [S, T, H] in reward units, and the critic's explained variance."""
    if config.baseline == "critic":
        values = rollout["values_old"] * value_scale
        advantages, returns = gae(rewards, values, rollout["resp_mask"], config, numbers)
        explained = np.zeros(rewards.shape[-1])
        for i in range(len(explained)):
            target, rest = returns[..., i][mask[..., i]], (returns - values)[..., i][mask[..., i]]
            explained[i] = 1 - rest.var() / target.var() if target.size and target.var() > 0 else 0.0
        return advantages, returns, explained
    totals = rewards.sum(1)
    how = "standardised" if config.adv_norm == "group" else config.baseline
    members = mask.any(1)
    advantages = np.zeros(rewards.shape)
    for s, i in np.argwhere(members):
        group = totals[(rollout["group"] == rollout["group"][s]) & members[:, i], i]
        advantages[s, rollout["resp_mask"][s], i] = _against_group(totals[s, i], group, how)
    return advantages, np.where(mask, totals[:, None, :], 0.0), None


def _against_group(own, group, how):
    if len(group) < 2 or np.ptp(group) == 0:
        return 0.0
    if how == "group_mean":
        return own - group.mean()
    if how == "leave_one_out":
        return own - (group.sum() - own) / (len(group) - 1)
    return (own - group.mean()) / (group.std(ddof=1) + 1e-4)


def gae(rewards, values, resp_mask, config, numbers):
    gamma, lam = by_stream(config, numbers, "gamma"), by_stream(config, numbers, "gae_lambda")
    advantages = np.zeros(rewards.shape)
    for s in range(len(rewards)):
        valid = np.flatnonzero(resp_mask[s])
        ahead, following = 0.0, 0.0
        for t in valid[::-1]:
            delta = rewards[s, t] + gamma * following - values[s, t]
            ahead = advantages[s, t] = delta + gamma * lam * ahead
            following = values[s, t]
    return advantages, np.where(resp_mask[..., None], advantages + values, 0.0)


def stream_stds(x, mask):
    """Population standard deviation per stream, None for a stream without entries."""
    return [x[..., i][mask[..., i]].std() if mask[..., i].any() else None for i in range(x.shape[-1])]


def normalise(advantages, mask, old, state, rollout, config, numbers):
    out = np.where(mask, advantages, 0.0)
    if config.adv_norm == "none":
        return out
    means = [out[..., i][mask[..., i]].mean() if mask[..., i].any() else 0.0 for i in range(out.shape[-1])]
    centred = np.where(mask, out - np.array(means), 0.0)
    if config.adv_norm == "center":
        return centred
    if config.adv_norm == "stream":
        for i, name in enumerate(config.streams):
            entries = centred[..., i][mask[..., i]]
            # A KL that is a reward keeps its unit.
            if entries.size and not (name == "kl" and config.kl == "k1_reward"):
                floor = numbers.sigma_floor * old["running_sigma"][i]
                centred[..., i] /= max(entries.std(), floor, 1e-4 * abs(means[i]), 1e-8)
        return centred
    # "after" and "group": the mixture over all response tokens has variance 1
    coefficients = rules.mix(
        old["weights"]["weights"], state["multipliers"]["value"], config.mix_norm, config.multipliers
    )
    mixture = (centred * coefficients).sum(-1)[rollout["resp_mask"]]
    return centred / max(mixture.std(), 1e-8)


def hold_violating_prompts(advantages, scores, rollout, thresholds, first):
    """A constraint's advantages count on the prompts that violate it only."""
    held = advantages.copy()
    for (s, m), applies in np.ndenumerate(rollout["applies"][:, first:]):
        own = np.arange(len(scores)) == s
        prompt = own if rollout.get("group") is None else rollout["group"] == rollout["group"][s]
        if applies and scores[prompt & rollout["applies"][:, first + m], first + m].mean() >= thresholds[m]:
            held[s, :, first + m] = 0.0
    return held


def _update_scales(state, old, sigma, returns, mask):
    """Running std of advantages and of returns: the first measurement is adopted."""
    for name in ("running_sigma", "value_scale", "value_seen"):
        state[name] = old[name].copy()
    for i, spread in enumerate(stream_stds(returns, mask)):
        if spread is None:
            continue
        before = old["running_sigma"][i]
        state["running_sigma"][i] = (SCALE_DECAY * before + (1 - SCALE_DECAY) * sigma[i]) if before > 0 else sigma[i]
        scale = SCALE_DECAY * old["value_scale"][i] + (1 - SCALE_DECAY) * spread if old["value_seen"][i] else spread
        state["value_scale"][i] = max(scale, 1e-3)
        state["value_seen"][i] = True


# ---- after the minibatches ------------------------------------------------------------------------------------------


def _steer_kl(state, kl, config, numbers):
    if config.kl_controller == "adaptive":
        error = min(max(kl / numbers.kl_target - 1, -0.2), 0.2)
        state["kl_coef"] = state["kl_coef"] * (1 + numbers.kl_gain * error)
    if config.kl_controller == "multiplier":
        state["kl_multiplier"], _ = rules.move_multipliers(
            state["kl_multiplier"], [-kl], [1.0], [-numbers.kl_target], config.multipliers, numbers
        )
        state["kl_coef"] = state["kl_multiplier"]["value"][0]


def metrics(state, old, mean, logs, j, violations, explained, thresholds, config, numbers):
    """The scalars of docs/metrics.md."""
    gram, weights, multipliers = mean["gram"], logs[-1]["weights"], state["multipliers"]["value"]
    coefficients = rules.mix(weights, multipliers, config.mix_norm, config.multipliers)
    if config.kl == "k1_reward":
        coefficients = np.append(coefficients, old["kl_coef"])
    lengths, objectives = rules.norms(gram), len(config.objectives)
    left = rules.deficits(
        SimpleNamespace(
            score=state["score_ema"],
            initial=state["score_initial"],
            target=np.array([numbers.targets.get(name, 1.0) for name in config.objectives]),
        )
    )
    out = {}
    for i in range(len(lengths)):
        name = config.streams[i]
        out[f"grad_norm/{name}"] = lengths[i]
        if len(lengths) == len(config.streams):
            out[f"share/{name}"] = coefficients[i] * lengths[i] / (coefficients @ lengths)
            out[f"alignment/{name}"] = gram[i] @ coefficients
        for other in range(i + 1, len(lengths)):
            product = lengths[i] * lengths[other]
            cosine = np.clip(gram[i, other] / product, -1, 1) if product > 0 else 0.0
            out[f"cosine/{name}/{config.streams[other]}"] = cosine
    for i, name in enumerate(config.streams):
        out[f"stream_loss/{name}"] = mean["stream_loss"][i]
        out[f"clip_fraction/{name}"] = mean["clip_fraction"][i]
        out[f"advantage_sigma/{name}"] = state["running_sigma"][i]
        if explained is not None:
            out[f"explained_variance/{name}"] = explained[i]
    for name, value in zip(config.objectives + config.constraints, j, strict=True):
        out[f"J/{name}"] = value
    for k, name in enumerate(config.objectives):
        out[f"weight/{name}"], out[f"deficit/{name}"] = weights[k], left[k]
    sigma = state["running_sigma"] if config.adv_norm == "stream" else np.ones(len(config.streams))
    unit = (weights / sigma[:objectives]).sum() if config.adv_norm == "stream" else 1.0
    for m, name in enumerate(config.constraints):
        out[f"constraint/{name}/score_ema"] = state["multipliers"]["ema_score"][m]
        out[f"constraint/{name}/threshold"] = thresholds[m]
        out[f"constraint/{name}/violation"] = violations[m]
        out[f"multiplier/{name}"] = multipliers[m]
        out[f"multiplier_kkt/{name}"] = multipliers[m] / sigma[objectives + m] / unit
    out["policy_loss"] = coefficients @ mean["stream_loss"]
    out["clip_fraction"] = mean["clip_fraction"].mean()
    out["ratio_max"] = max(log["ratio_max"] for log in logs)
    out["updates"] = sum(log["made"] for log in logs)
    out["kl_coef"] = state["kl_coef"]
    return out | {
        name: mean[name] for name in ("kl", "kl_old", "entropy", "value_loss", "grad_norm", "value_grad_norm")
    }


def start(params, config, numbers):
    """State before the first step."""
    objectives, streams = len(config.objectives), len(config.streams)
    common = numbers.multiplier_init
    if common is None:
        common = {"sigmoid": 0.5, "tanh": 0.0, "crpo": 0.0}.get(config.multipliers, 1.0)
    multipliers = [numbers.multiplier_values.get(name, common) for name in config.constraints]
    kl_rule = config.multipliers if config.kl_controller == "multiplier" else "pid"
    zeros = [np.zeros_like(leaf) for _, leaf in flatten(params)]
    return {
        "params": params,
        "adam": {"count": 0, "mu": like(params, zeros), "nu": like(params, zeros)},
        "multipliers": rules.start_multipliers(multipliers, config.multipliers),
        "weights": rules.start_weights([numbers.objective_weights.get(name, 1.0) for name in config.objectives]),
        "score_ema": np.zeros(objectives),
        "score_initial": np.zeros(objectives),
        "score_seen": np.zeros(objectives, int),
        "running_sigma": np.zeros(streams),
        "value_scale": np.ones(streams),
        "value_seen": np.zeros(streams, bool),
        "kl_coef": float(numbers.kl_coef),
        "kl_multiplier": rules.start_multipliers([numbers.kl_coef], kl_rule),
        "step": 0,
    }
