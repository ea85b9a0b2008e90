"""The minibatches of the slow step: losses, gradients by central differences, Gram matrices, Adam.

No gradient is derived by hand: every loss is written out as a function of the parameters and differentiated
numerically, with an error in float64 (about 1e-10) far below float32's rounding.

Sizes: B sequences of the minibatch, C context, T response positions, H streams, V vocabulary, D width.
"""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import numpy as np
import numpy_rules as rules

DIFFERENCE = 1e-5
ADAM = SimpleNamespace(b1=0.9, b2=0.98, eps=1e-6)


# ---- model ----------------------------------------------------------------------------------------------------------


def hidden_states(params, tokens, mask):
    """tanh(e_t + e_{t-1} A), padding has no embedding: [B, C+T, D]."""
    embedded = params["trunk"]["embedding"][tokens] * mask[..., None]
    before = np.concatenate([np.zeros_like(embedded[:, :1]), embedded[:, :-1]], axis=1)
    return np.tanh(embedded + before @ params["trunk"]["kernel"])


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def flatten(tree):
    """Names and arrays of a nested dict."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from (((name, *path), leaf) for path, leaf in flatten(value))
        else:
            yield (name,), value


def like(tree, leaves):
    """A nested dict of the same form from leaves in the order of `flatten`."""
    out, leaves = {}, iter(leaves)
    for path, _ in flatten(tree):
        place = out
        for name in path[:-1]:
            place = place.setdefault(name, {})
        place[path[-1]] = next(leaves)
    return out


def jacobian(function, point):
    """Central differences of a vector function of an array: [outputs, size of point]."""
    columns = []
    for n in range(point.size):
        ends = []
        for sign in (1, -1):
            moved = point.copy()
            moved.flat[n] += sign * DIFFERENCE
            ends.append(np.atleast_1d(function(moved)))
        columns.append((ends[0] - ends[1]) / (2 * DIFFERENCE))
    return np.stack(columns, axis=1)


def tree_jacobian(function, tree):
    """The same for a nested dict: a list with [outputs, size of leaf] per leaf."""
    leaves = [leaf for _, leaf in flatten(tree)]

    def with_leaf(n):
        return lambda x: function(like(tree, [*leaves[:n], x, *leaves[n + 1 :]]))

    return [jacobian(with_leaf(n), leaf) for n, leaf in enumerate(leaves)]


# ---- minibatches ----------------------------------------------------------------------------------------------------


class Updates:
    """The loop over epochs and minibatches."""

    def __init__(self, state, old, rollout, advantages, returns, applies, scores, counts, config, numbers):
        self.config, self.numbers = config, numbers
        self.multipliers, self.kl_coef, self.step = state["multipliers"]["value"], old["kl_coef"], old["step"]
        self.params, self.adam, self.weights = old["params"], old["adam"], old["weights"]
        self.rollout, self.applies, self.advantages = rollout, applies, advantages
        self.returns = returns / state["value_scale"]
        if rollout.get("values_old") is not None:
            # The critic spoke in units of the old scale; clipping compares in the new one.
            self.values_old = rollout["values_old"] * old["value_scale"] / state["value_scale"]
        self.token_weights = rollout["resp_mask"].astype(float)
        if config.loss_mean == "sequence":
            self.token_weights /= rollout["resp_mask"].sum(1, keepdims=True)
        # Denominators: the rollout's mean weight per minibatch, of all tokens and of each stream's.
        self.total = self.token_weights.sum() / config.minibatches
        by_stream = (self.token_weights[..., None] * applies[:, None, :]).sum((0, 1)) / config.minibatches
        self.stream_total = np.where(by_stream > 0, by_stream, 1.0)
        self.stats = self._weight_stats(state, old, scores, counts)
        self.gram, self.made, self.running = None, 0, True

    def _weight_stats(self, state, old, scores, counts):
        objectives = len(self.config.objectives)
        columns = {"mean": [], "std": [], "corr": []}
        total = (
            np.where(self.rollout["applies"][:, :objectives], scores[:, :objectives], 0.0) @ old["weights"]["weights"]
        )
        for k in range(objectives):
            chosen = self.rollout["applies"][:, k]
            own, mixed = scores[chosen, k], total[chosen]
            varies = own.size > 0 and own.std() * mixed.std() > 1e-12
            columns["mean"].append(own.mean() if own.size else 0.0)
            columns["std"].append(own.std() if own.size else 0.0)
            columns["corr"].append(np.corrcoef(own, mixed)[0, 1] if varies else 0.0)
        targets = [self.numbers.targets.get(name, 1.0) for name in self.config.objectives]
        return SimpleNamespace(
            score=state["score_ema"],
            initial=state["score_initial"],
            target=np.array(targets),
            count=counts[:objectives],
            rollout=old["step"],
            **{name: np.array(values) for name, values in columns.items()},
        )

    def run(self):
        """Logs of every minibatch, whether its update was made or not."""
        count, logs = self.config.minibatches, []
        for _, first in itertools.product(range(self.config.epochs), range(count)):
            logs.append(self.minibatch(np.arange(first, len(self.applies), count)))
        return logs

    def minibatch(self, rows):
        before = self.adam, self.weights, self.gram
        actor = {name: part for name, part in self.params.items() if name != "value"}
        logps = self.log_probabilities(actor, rows)
        self.reweigh(actor, rows)
        coefficients = self.mixing()
        gradient = tree_jacobian(lambda p: self.policy_loss(p, rows, coefficients), actor)
        log = self.observe(actor, rows, logps)
        value_gradient = []
        if "value" in self.params:
            critic = {"value": self.params["value"]}
            hidden = hidden_states(actor, *self.inputs(rows))[:, self.context - 1 : -1]
            log["value_loss"] = self.value_loss(critic, hidden, rows)
            value_gradient = tree_jacobian(lambda c: self.value_loss(c, hidden, rows), critic)
        self.running = self.running and not log["kl_old"] > self.numbers.stop_kl
        gradient, log["grad_norm"] = self.clipped(gradient)
        value_gradient, log["value_grad_norm"] = self.clipped(value_gradient)
        log |= {"made": self.running, "gram": self.gram}
        if self.running:
            self.made += 1
            self.optimise(like(self.params, [leaf[0] for leaf in self.in_order(gradient, value_gradient)]))
        else:
            self.adam, self.weights, self.gram = before
        log["weights"] = self.weights["weights"]
        return log

    # what the losses are made of

    @property
    def context(self):
        return self.rollout["tokens"].shape[1] - self.rollout["resp_mask"].shape[1]

    def inputs(self, rows):
        mask = np.concatenate([self.rollout["context_mask"], self.rollout["resp_mask"]], axis=1)
        return self.rollout["tokens"][rows], mask[rows]

    def log_probabilities(self, actor, rows, layer=None, gain=1.0, bias=0.0):
        """[B, T, V]; with a virtual layer, gain and bias between the hidden states and the head."""
        hidden = hidden_states(actor, *self.inputs(rows))[:, self.context - 1 : -1] * gain + bias
        hidden = hidden if layer is None else hidden @ layer
        return log_softmax(hidden @ actor["policy"]["kernel"])

    def of_tokens(self, logps, rows):
        replies = self.rollout["tokens"][rows][:, self.context :]
        return np.take_along_axis(logps, replies[..., None], axis=-1)[..., 0]

    def ratios(self, logps, rows):
        return np.exp(self.of_tokens(logps, rows) - self.rollout["logp_old"][rows])

    def surrogate(self, rho, advantages):
        numbers = self.numbers
        clipped = np.clip(rho, 1 - numbers.clip_low, 1 + numbers.clip_high)
        least = np.minimum(rho * advantages, clipped * advantages)
        if numbers.dual_clip > 0:
            least = np.where(advantages < 0, np.maximum(least, numbers.dual_clip * advantages), least)
        return least

    def shares(self, rows):
        """Weight of every token in its stream's mean, [B, T, H]; 0 where the stream does not apply."""
        valid = self.rollout["resp_mask"][rows][..., None] & self.applies[rows][:, None, :]
        return np.where(valid, self.token_weights[rows][..., None], 0.0) / self.stream_total

    def stream_losses(self, logps, rows):
        """Surrogate losses [H] of the streams."""
        rho = self.ratios(logps, rows)[..., None]
        return -(self.surrogate(rho, self.advantages[rows]) * self.shares(rows)).sum((0, 1))

    def halves(self, logps, rows):
        """The same, of every other sequence and of the rest: [2 H]."""
        rho = self.ratios(logps, rows)[..., None]
        terms = -self.surrogate(rho, self.advantages[rows]) * self.shares(rows)
        return np.concatenate([terms[::2].sum((0, 1)), terms[1::2].sum((0, 1))])

    def kl(self, logps, rows):
        """KL to the reference per token [B, T]."""
        config, chosen = self.config, self.rollout["resp_mask"][rows]
        if config.kl == "full":
            reference = np.where(chosen[..., None], self.rollout["ref_logps"][rows], 0.0)
            return np.where(chosen, (np.exp(logps) * (logps - reference)).sum(-1), 0.0)
        if self.rollout.get("logp_ref") is None:
            return np.zeros(chosen.shape)
        gap = np.where(chosen, self.of_tokens(logps, rows) - self.rollout["logp_ref"][rows], 0.0)
        return gap**2 / 2 if config.kl == "k2" else np.exp(-gap) - 1 + gap

    def entropy(self, logps):
        return -(np.exp(logps) * logps).sum(-1)

    def policy_loss(self, actor, rows, coefficients):
        logps = self.log_probabilities(actor, rows)
        if self.config.clip == "per_stream":
            loss = coefficients @ self.stream_losses(logps, rows)
        else:
            mixed = (self.advantages[rows] * self.shares(rows) * coefficients).sum(-1)
            loss = -self.surrogate(self.ratios(logps, rows), mixed).sum()
        share = self.token_weights[rows] / self.total
        if self.config.kl in ("full", "k2", "k3"):
            loss = loss + self.kl_coef * (self.kl(logps, rows) * share).sum()
        return loss - self.numbers.entropy_coef * (self.entropy(logps) * share).sum()

    def value_loss(self, critic, hidden, rows):
        values = hidden @ critic["value"]["kernel"] + critic["value"]["bias"]
        returns, before = self.returns[rows], self.values_old[rows]
        loss = (values - returns) ** 2 / 2
        if self.config.value_clip:
            near = before + np.clip(values - before, -self.numbers.clip_value, self.numbers.clip_value)
            loss = np.maximum(loss, (near - returns) ** 2 / 2)
        return (loss * self.shares(rows)).sum()

    # weights

    def mixing(self):
        both = rules.mix(self.weights["weights"], self.multipliers, self.config.mix_norm, self.config.multipliers)
        return np.append(both, self.kl_coef) if self.config.kl == "k1_reward" else both

    def reweigh(self, actor, rows):
        every = self.config.norm_every
        if self.made and (every == 0 or self.made % every):
            return
        objectives = len(self.config.objectives)
        asked = objectives if self.config.norm_for == "objectives" else None
        self.gram = self.measure(actor, rows)[:asked, :asked]
        stats = SimpleNamespace(**vars(self.stats) | {"gram": self.gram[:objectives, :objectives]})
        self.weights = rules.move_weights(self.weights, stats, self.config.weights, self.numbers)

    def measure(self, actor, rows):
        """Inner products of the streams' gradients where `norm_at` says."""
        losses = self.stream_losses if self.config.norm_of == "total" else self.halves
        width = actor["trunk"]["kernel"].shape[0]

        def at(**place):
            return losses(self.log_probabilities(place.pop("actor", actor), rows, **place), rows)

        if self.config.norm_at == "virtual":
            gradients = jacobian(lambda z: at(layer=z), np.eye(width))
        elif self.config.norm_at == "final_norm":
            gain = jacobian(lambda x: at(gain=x), np.ones(width))
            gradients = np.concatenate([gain, jacobian(lambda x: at(bias=x), np.zeros(width))], axis=1)
        elif self.config.norm_at == "last_layer":
            head = actor["policy"]["kernel"]
            gradients = jacobian(lambda w: at(actor=actor | {"policy": {"kernel": w}}), head)
        else:
            gradients = np.concatenate(
                [g * p for g, p in zip(tree_jacobian(lambda a: at(actor=a), actor), self.precondition(), strict=True)],
                axis=1,
            )
        gram = gradients @ gradients.T
        if self.config.norm_of == "total":
            return gram
        across = gram[: len(gram) // 2, len(gram) // 2 :]
        return 2 * (across + across.T)

    def precondition(self):
        """Adam's factor for every parameter of the actor, 1 before the first update."""
        second = [leaf.reshape(1, -1) for path, leaf in flatten(self.adam["nu"]) if path[0] != "value"]
        largest = max(leaf.max() for leaf in second)
        if self.config.norm_space == "euclid" or largest == 0:
            return [1.0] * len(second)
        return [1 / (np.sqrt(leaf / largest) + 1e-2) for leaf in second]

    # optimizer

    def clipped(self, gradient):
        norm = math.sqrt(sum((leaf**2).sum() for leaf in gradient))
        return [leaf * min(1.0, self.numbers.max_grad_norm / max(norm, 1e-12)) for leaf in gradient], norm

    def in_order(self, gradient, value_gradient):
        """Leaves of both parts in the order of the parameters."""
        gradient, value_gradient = iter(gradient), iter(value_gradient)
        for path, leaf in flatten(self.params):
            part = next(value_gradient if path[0] == "value" else gradient)
            yield part.reshape(1, *leaf.shape)

    def optimise(self, gradient):
        numbers, count = self.numbers, self.adam["count"] + 1
        progress = min(self.step / numbers.decay_steps, 1.0) if numbers.decay_steps else 0.0
        rate = 0.0 if self.step < numbers.warmup_steps else numbers.learning_rate * (1 - 0.9 * progress)
        params, mus, nus = [], [], []
        trees = (self.params, gradient, self.adam["mu"], self.adam["nu"])
        for (path, p), (_, g), (_, mu), (_, nu) in zip(*map(flatten, trees), strict=True):
            mus.append(ADAM.b1 * mu + (1 - ADAM.b1) * g)
            nus.append(ADAM.b2 * nu + (1 - ADAM.b2) * g**2)
            direction = mus[-1] / (1 - ADAM.b1**count) / (np.sqrt(nus[-1] / (1 - ADAM.b2**count)) + ADAM.eps)
            params.append(p - (numbers.value_learning_rate if path[0] == "value" else rate) * direction)
        self.params, self.adam = (
            like(self.params, params),
            {"count": count, "mu": like(gradient, mus), "nu": like(gradient, nus)},
        )

    # metrics

    def observe(self, actor, rows, logps):
        """What is logged of a minibatch; means per token are over its own tokens."""
        chosen = self.rollout["resp_mask"][rows]
        rho = self.ratios(logps, rows)[..., None]
        valid = chosen[..., None] & self.applies[rows][:, None, :]
        advantages = self.advantages[rows]
        # Clipped: the surrogate no longer follows the ratio.
        moved = self.surrogate(rho * (1 + 1e-7), advantages) != self.surrogate(rho * (1 - 1e-7), advantages)
        clipped = ~moved & valid & (advantages != 0)
        log_ratio = self.of_tokens(logps, rows) - self.rollout["logp_old"][rows]
        return {
            "stream_loss": self.stream_losses(logps, rows),
            "clip_fraction": clipped.sum((0, 1)) / np.maximum(valid.sum((0, 1)), 1),
            "kl": self.kl(logps, rows)[chosen].mean(),
            "kl_old": (np.exp(log_ratio) - 1 - log_ratio)[chosen].mean(),
            "entropy": self.entropy(logps)[chosen].mean(),
            "ratio_max": rho[..., 0][chosen].max(),
            "value_loss": 0.0,
        }
