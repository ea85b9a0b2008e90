"""Multiplier and weight rules once more, slowly: plain NumPy in float64, for the golden test of the whole step.

Written from the formulas of the documentation, with exact solvers (enumeration, NNLS, grids) where the library
iterates. Nothing is shared with the library: states are plain dicts, and `numbers` is read by attribute only.
"""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import numpy as np
from scipy.optimize import nnls

SMALLEST = {"softplus": 1e-6, "exp": 1e-6, "sigmoid": 1e-3}
LARGEST = {"softplus": math.inf, "exp": math.inf, "sigmoid": 1 - 1e-3, "tanh": 1 - 1e-3}
TRANSFORMS = {
    # multiplier from nu, nu from multiplier
    "softplus": (lambda nu: math.log1p(math.exp(nu)), lambda x: math.log(math.expm1(x))),
    "exp": (math.exp, math.log),
    "sigmoid": (lambda nu: 1 / (1 + math.exp(-nu)), lambda x: math.log(x / (1 - x))),
    "tanh": (math.tanh, math.atanh),
}


# ---- multipliers ----------------------------------------------------------------------------------------------------


def start_multipliers(initial, rule):
    """State of M multipliers before the first rollout; the rule's memory in `integral`."""
    memory = {
        "crpo": lambda x: 0.0,
        **{name: inverse for name, (_, inverse) in TRANSFORMS.items()},
    }.get(rule, lambda x: x)
    zeros = np.zeros(len(initial))
    return {
        "value": np.array(initial, float),
        "integral": np.array([memory(x) for x in initial], float),
        "ema_score": zeros.copy(),
        "ema_error": zeros.copy(),
        "prev_score": zeros.copy(),
        "seen": np.zeros(len(initial), int),
    }


def move_multipliers(state, scores, counts, thresholds, rule, numbers):
    """One update; returns the new state and the violations of this rollout."""
    new = {name: values.copy() for name, values in state.items()}
    violations = np.zeros(len(scores))
    for m, (score, count, threshold) in enumerate(zip(scores, counts, thresholds, strict=True)):
        if count == 0:
            continue
        first = state["seen"][m] == 0
        decay = numbers.multiplier_ema
        ema = score if first else decay * state["ema_score"][m] + (1 - decay) * score
        previous = ema if first else state["ema_score"][m]
        error = threshold - ema
        rate = min(max(ema, 0.0), 1.0)
        band = numbers.multiplier_dead_band * math.sqrt(rate * (1 - rate) / count)
        banded = math.copysign(max(abs(error) - band, 0.0), error)
        signal = SimpleNamespace(error=error, banded=banded, fall=max(0.0, previous - ema))
        new["value"][m], new["integral"][m] = _move_one(rule, state["value"][m], state["integral"][m], signal, numbers)
        new["ema_score"][m], new["ema_error"][m], new["prev_score"][m] = ema, error, previous
        new["seen"][m] += 1
        violations[m] = abs(threshold - score) if rule == "tanh" else max(0.0, threshold - score)
    if rule == "crpo" and len(scores):
        # The worst of all constraints by their last known error, tested by this rollout or not.
        worst = int(np.argmax(new["integral"]))
        new["value"] = np.zeros(len(scores))
        if new["integral"][worst] > numbers.multiplier_tolerance:
            new["value"][worst] = 1.0
    return new, violations


def _move_one(rule, value, memory, signal, numbers):
    most = numbers.multiplier_max
    if rule in ("fixed", "hinge"):
        return value, memory
    if rule == "crpo":
        return value, signal.banded
    if rule == "clip":
        moved = min(max(value + numbers.multiplier_lr * signal.banded, 0.0), most)
        return moved, moved
    if rule == "pid":
        integral = min(max(memory + numbers.multiplier_ki * signal.banded, 0.0), most)
        raw = numbers.multiplier_kp * signal.error + integral + numbers.multiplier_kd * signal.fall
        return min(max(raw, 0.0), most), integral
    forward, inverse = TRANSFORMS[rule]
    slope = {"softplus": 1 / (1 + math.exp(-memory)), "exp": value}.get(rule, 1.0)
    nu = memory + numbers.multiplier_lr * signal.banded * slope
    highest = inverse(min(LARGEST[rule], most))
    lowest = -highest if rule == "tanh" else inverse(SMALLEST[rule])
    nu = min(max(nu, lowest), highest)
    return forward(nu), nu


def mix(weights, multipliers, how, rule):
    """Coefficients of objectives and constraints in the policy loss, one vector."""
    total = np.abs(multipliers).sum()
    if rule == "crpo":  # one thing at a time
        return np.concatenate([weights * 0, multipliers]) if total > 0 else np.concatenate([weights, multipliers])
    scale = {"one_plus_lambda": 1 + total, "sum_to_one": weights.sum() + total, "none": 1.0}[how]
    return np.concatenate([weights, multipliers]) / scale


# ---- weights --------------------------------------------------------------------------------------------------------

READS_GRADIENTS = ("inv_norm", "gradnorm", "gradnorm_cf", "dyn", "mgda", "pcgrad", "cagrad", "upgrad")


def start_weights(base):
    base = np.array(base, float) / np.sum(base)
    zeros = np.zeros(len(base))
    return {
        "weights": base.copy(),
        "base": base.copy(),
        "raw": base.copy(),
        "last_score": zeros.copy(),
        "slope": zeros.copy(),
        "corr": zeros.copy(),
        "seen": np.zeros(len(base), int),
        "rollout": np.array(-1),
    }


def norms(gram):
    return np.sqrt(np.maximum(np.diag(gram), 0.0))


def has_gradient(gram):
    n = norms(gram)
    return n > max(1e-6 * n.max(initial=0.0), 1e-12)


def gaps(stats):
    """Way from the start to the target, at least 5 % of their size."""
    size = np.maximum(np.abs(stats.target), np.abs(stats.initial))
    return np.maximum(stats.target - stats.initial, np.maximum(0.05 * size, 1e-8))


def deficits(stats):
    return np.clip((stats.target - stats.score) / gaps(stats), 0.05, 5.0)


def move_weights(state, stats, rule, numbers):
    """One update. stats: gram [K,K], score, initial, target, count, mean, std, corr [K], rollout."""
    new = {name: np.array(values) for name, values in state.items()}
    present = stats.count > 0
    fresh = stats.rollout != state["rollout"]
    active = present & has_gradient(stats.gram) if rule in READS_GRADIENTS else present
    raw, memory = _raw(state, stats, rule, numbers, active, fresh)
    for name, values in memory.items():
        new[name][active] = values[active]
    new["weights"] = _settle(state, np.where(active, raw, 0.0), active, numbers)
    if fresh:
        new["last_score"][present] = stats.score[present]
        new["seen"][present] += 1
    new["rollout"] = np.array(stats.rollout)
    return new


def _settle(state, raw, active, numbers):
    """Floor, simplex, cap, smoothing; what is not active keeps its weight."""
    weights, base = state["weights"], state["base"]
    if raw.sum() == 0:
        return weights.copy()
    mass = weights[active].sum()
    floor = numbers.weight_floor * base[active].sum()
    target = np.zeros(len(weights))
    for k in np.flatnonzero(active):
        target[k] = numbers.weight_floor * base[k] + max(mass - floor, 0.0) * raw[k] / raw.sum()
    target *= mass / target.sum()
    if numbers.weight_cap < 1:
        target = _cap(target, mass, active & (base > 0), base, numbers.weight_cap)
    ema = numbers.weight_ema
    return np.where(active, ema * weights + (1 - ema) * target, weights)


def _cap(target, mass, takers, base, cap):
    """Fill up in proportion: t_k = min(cap, target_k + s base_k) with the s that keeps the mass."""
    cap = max(cap, mass / takers.sum())
    full = np.zeros(len(target), bool)
    while (target > cap + 1e-15).any():
        full |= takers & (target >= cap)
        excess = np.maximum(target - cap, 0.0).sum()
        target = np.minimum(target, cap)
        room = takers & ~full
        if not room.any():
            break
        target = target + excess * np.where(room, base, 0.0) / base[room].sum()
    return target


def _raw(state, stats, rule, numbers, active, fresh):
    """Raw weights (up to a scale) and the memory that the rule moves."""
    base, gram = state["base"], stats.gram
    take_part = active & (base > 0)
    n = np.where(take_part, norms(gram), 1.0)
    if rule == "fixed":
        return base, {}
    if rule == "inv_norm":
        return base / n, {}
    if rule in ("gradnorm_cf", "gradnorm"):
        left = deficits(stats)
        relative = np.where(stats.count > 0, left / left[stats.count > 0].mean(), 1.0)
        if rule == "gradnorm_cf":
            return base * relative**numbers.weight_alpha / n, {}
        return _gradnorm(state, base * relative**numbers.weight_alpha, n, take_part, numbers)
    if not take_part.any():
        return base, {}
    if rule == "dyn":
        number = take_part.sum()
        scale = n[take_part].sum() ** 2 / number
        inside = np.flatnonzero(take_part)
        influence = np.array([gram[k, inside].sum() / scale if take_part[k] else 0.0 for k in range(len(n))])
        return _iterated(state, state["raw"] * np.exp(numbers.weight_lr * influence), take_part)
    if rule == "improve":
        made = np.where(state["seen"] > 0, (stats.score - state["last_score"]) / gaps(stats), 0.0)
        slope = made if fresh else state["slope"]
        return base * np.exp(-(slope - slope[take_part].min()) / numbers.weight_tau), {"slope": slope}
    if rule == "cv":
        return base * np.minimum(stats.std / np.maximum(np.abs(stats.mean), 1e-12), 1e3), {}
    if rule == "var":
        return base * stats.std**numbers.weight_power, {}
    if rule == "ctwa":
        if not fresh:
            return state["raw"], {}
        ema = numbers.weight_ema
        corr = np.where(state["seen"] > 0, ema * state["corr"] + (1 - ema) * stats.corr, stats.corr)
        grown = state["raw"] * np.exp(numbers.weight_lr * np.maximum(numbers.weight_corr_target - corr, 0.0))
        raw, memory = _iterated(state, grown, take_part)
        return raw, memory | {"corr": corr}
    inside = np.flatnonzero(take_part)
    solved = {"mgda": mgda, "pcgrad": pcgrad, "upgrad": upgrad, "cagrad": cagrad}[rule]
    extra = (numbers.weight_cagrad_c,) if rule == "cagrad" else ()
    raw = np.zeros(len(base))
    raw[inside] = solved(gram[np.ix_(inside, inside)], base[inside], *extra)
    return raw, {}


def _gradnorm(state, wanted, n, active, numbers):
    number, mass = active.sum(), state["raw"][active].sum()
    v = np.where(active, state["raw"] / mass * number, 0.0)
    total = (v * n)[active].sum()
    moved = v.copy()
    for k in np.flatnonzero(active):
        gap = v[k] * n[k] - total * wanted[k] / wanted[active].sum()
        moved[k] = v[k] - numbers.weight_lr * np.sign(gap) * n[k] / n[active].mean()
    return _iterated(state, moved * mass / number, active)


def _iterated(state, moved, active):
    """Iterated weights keep the mass that the active ones had, and a thousandth of the user's weight."""
    raw = state["raw"].copy()
    kept = np.maximum(moved, 1e-3 * state["base"])[active]
    raw[active] = kept / kept.sum() * state["raw"][active].sum()
    return raw, {"raw": raw}


# ---- directions from the Gram matrix, solved exactly ----------------------------------------------------------------


def _simplex_faces(count):
    for size in range(1, count + 1):
        yield from itertools.combinations(range(count), size)


def _rows(gram):
    """Vectors whose inner products are the Gram matrix."""
    values, vectors = np.linalg.eigh(gram)
    return vectors * np.sqrt(np.maximum(values, 0.0))


def mgda(gram, base):
    """Shortest point of the convex hull of g_k / b_k: the best of the stationary points of all its faces."""
    scaled = gram / base[:, None] / base[None, :]
    best, chosen = math.inf, None
    for face in _simplex_faces(len(base)):
        solution = np.linalg.lstsq(scaled[np.ix_(face, face)], np.ones(len(face)), rcond=None)[0]
        alpha = np.zeros(len(base))
        alpha[list(face)] = solution / solution.sum()
        if alpha.min() >= 0 and alpha @ scaled @ alpha < best:
            best, chosen = alpha @ scaled @ alpha, alpha
    return chosen / base


def cagrad(gram, base, c):
    """Least <g_a, g_0> + c |g_0| |g_a| over the simplex."""
    preference = base / base.sum()
    towards = gram @ preference
    radius = c * math.sqrt(preference @ towards)
    alpha = _least_on_simplex(lambda a: a @ towards + radius * np.sqrt(((a @ gram) * a).sum(-1)), len(base))
    return preference + radius / math.sqrt(alpha @ gram @ alpha) * alpha


def _least_on_simplex(function, count):
    """Minimum of a convex function of rows [points, count]: a grid around the best point so far, ever finer."""
    grid = np.array([p for p in itertools.product(range(13), repeat=count) if sum(p) == 12]) / 12
    best, width = np.full(count, 1 / count), 1.0
    for _ in range(80):
        points = np.maximum(best + width * (grid - 1 / count), 0.0)
        points = np.vstack([best, points / points.sum(1, keepdims=True)])
        best, width = points[np.argmin(function(points))], 0.75 * width
    return best


def pcgrad(gram, base):
    vectors = _rows(gram)
    total = np.zeros(len(base))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for k in range(len(base)):
        coefficients = np.eye(len(base))[k]
        for j in sorted((j for j in range(len(base)) if j != k), key=lambda j: unit[k] @ unit[j]):
            inner = coefficients @ vectors @ vectors[j]
            if inner < 0:
                coefficients[j] -= inner / (vectors[j] @ vectors[j])
        total += base[k] * coefficients
    return total


def upgrad(gram, base):
    """v_k = g_k + sum_j u_j g_j, u >= 0 of least |v_k|: non-negative least squares."""
    vectors = _rows(gram)
    total = np.zeros(len(base))
    for k in range(len(base)):
        u, _ = nnls(vectors.T, -vectors[k])
        total += base[k] * (np.eye(len(base))[k] + u)
    return total
