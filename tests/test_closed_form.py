"""Policies trained by `train_step` against optima known in closed form: bandits and a small constrained process.

The problem max sum_k w_k J_k s.t. J_m >= d_m over policies is a linear program: its value and the duals of its
constraints are what a trained policy and its multipliers must come to. Three things are chosen for that:

- `adv_norm` center or none: lambda is then in units of reward, as the dual is. Under `stream` it is an exchange rate
  between advantages of unit variance, and the metric `multiplier_kkt` has the dual; one test is about that.
- The optimum is strictly mixed and a sum of rewards is linear, so gradient play between policy and multiplier circles
  around the optimum. An entropy bonus damps it: 0.1, halved every `HALF` rollouts. Its mean over the last quarter of
  the rollouts, alpha = 2e-3, still moves lambda, by alpha (1 + Lambda) log(p / q) / (c_p - c_q) where actions of
  chances p and q are mixed: the errors measured on the bandits, up to 0.004, are this and no more.
- Sequences are drawn by systematic sampling, so that the error of a rollout's J is of order 1/S, here 1/256.

Allowed are errors of 0.002 in J_m (measured: 0.001, what is left of the circling; integral control leaves no other),
0.01 in the objectives' value (measured: 0.005, wrong actions of the process that have not died out yet) and 0.01 in
lambda; all are means over the last quarter of the rollouts.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from morejax.compile import compile_step
from morejax.config import StepConfig, StepNumbers
from morejax.models import ActorCritic, CriticConfig, DecoderConfig, merge
from morejax.rollout import Rollout
from morejax.state import TrainState, default_optimizer, init_state

sys.path.append(str(Path(__file__).parent))  # pytest's importlib mode puts no test directory on the path
from cmdp import Process, bandit

SEQUENCES, ROLLOUTS, HALF = 256, 1000, 150
THRESHOLD_ERROR, VALUE_ERROR, MULTIPLIER_ERROR = 0.002, 0.01, 0.01
PLAIN = optax.identity()  # gradient descent; one object, since another would be compiled anew


PROBLEMS = {
    # p_2 = d = 0.4, so J = 0.6 + 0.4 * 0.4 = 0.76; both arms are equally good at 1 = 0.4 + lambda.
    "two arms": bandit([1.0, 0.4], [[0.0, 1.0]], [0.4]),
    # p = (0.5, 0.3, 0.2), so J = 0.5 + 0.3 * 0.2 + 0.2 * 0.4 = 0.64; 1 = 0.2 + lambda_1 = 0.4 + lambda_2.
    "three arms": bandit([1.0, 0.2, 0.4], [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], [0.3, 0.2]),
    # Two start states, three actions in a row; the second constraint is not asked of start state 0.
    "process": Process(
        objectives=np.array(
            [
                [[0.9, 0.4, 0.2], [0.7, 0.9, 0.3], [0.4, 0.0, 1.0]],
                [[1.0, 0.7, 0.6], [0.6, 0.7, 0.8], [0.6, 0.8, 0.5]],
            ]
        ),
        constraints=np.array([[[0, 0, 1], [0, 1, 1], [1, 1, 1]], [[1, 1, 1], [0, 0, 1], [1, 0, 1]]]) / 3,
        thresholds=np.array([0.8, 0.7]),
        weights=np.array([0.75, 0.25]),
        starts=np.array([0.5, 0.5, 0.0]),
        asked=np.array([[True, True, True], [False, True, False]]),
        length=3,
        # A row of the table is met in every 18th token or so, so its gradient is that much smaller.
        learning_rate=10.0,
    ),
}


def test_the_program_solves_the_bandits_by_hand():
    two, three = PROBLEMS["two arms"].optimum, PROBLEMS["three arms"].optimum
    np.testing.assert_allclose([two.value, *two.scores, *two.multipliers], [0.76, 0.76, 0.4, 0.6], rtol=1e-9)
    np.testing.assert_allclose(three.scores, [0.64, 0.3, 0.2], rtol=1e-9)
    np.testing.assert_allclose(three.multipliers, [0.8, 0.6], rtol=1e-9)


@pytest.mark.parametrize("name", PROBLEMS)
def test_strong_duality(name):
    """max_x sum w J + sum lambda (J_m - d_m) is the constrained optimum, and every constraint binds at a price > 0."""
    problem, optimum = PROBLEMS[name], PROBLEMS[name].optimum
    free = problem.solve(np.concatenate([problem.weights, optimum.multipliers]), constrained=False)
    np.testing.assert_allclose(free.value - (optimum.multipliers * problem.thresholds).sum(), optimum.value, rtol=1e-9)
    np.testing.assert_allclose(optimum.scores[len(problem.weights) :], problem.thresholds, rtol=1e-9)
    assert (optimum.multipliers > 0.5).all()


# ---- models, rollouts, training ----------------------------------------------------------------------------------


class Table(nnx.Module):
    """The smallest model that a step can train: a row of logits and of values for each time, start and state."""

    def __init__(self, problem: Process):
        self.states, actions = problem.rewards.shape[1:]
        self.rows = self.states**2 * (problem.length + 1)
        self.policy = nnx.Param(jnp.zeros((self.rows, actions)))
        self.value = nnx.Param(jnp.zeros((self.rows, len(problem.rewards))))

    def hidden(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """f32[B, 1 + T, rows]: the row in which the next token is chosen."""
        time = jnp.arange(tokens.shape[1])[None, :]
        row = (time * self.states + tokens[:, :1]) * self.states + jnp.cumsum(tokens, axis=1) % self.states
        return jax.nn.one_hot(row, self.rows)

    def logits(self, hidden: jax.Array) -> jax.Array:
        return hidden @ self.policy[...]

    def values(self, tokens: jax.Array, mask: jax.Array, hidden: jax.Array) -> jax.Array:
        return hidden @ self.value[...]


def decoder(problem: Process) -> ActorCritic:
    """One transformer layer; it sees start and actions, and has to find the state itself."""
    shape = {"vocab_size": problem.rewards.shape[-1], "max_length": problem.length + 1}
    config = DecoderConfig(**shape, layers=1, width=16, heads=2, tied=False)
    critic = CriticConfig(kind="shared", hidden=16)
    return ActorCritic(config, critic=critic, streams=len(problem.rewards), rngs=nnx.Rngs(0))


def read(problem: Process, state: TrainState) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The policy on all paths: log-probabilities f32[P, T], chances f32[P], values f32[P, T, H]."""
    tokens = jnp.asarray(problem.paths[0])
    mask = jnp.ones(tokens.shape, bool)
    model = merge(state.graphdef, state.params)
    hidden = model.hidden(tokens, mask)
    logps = jax.nn.log_softmax(model.logits(hidden[:, :-1]))
    logp = jnp.take_along_axis(logps, tokens[:, 1:, None], -1)[..., 0]
    chance = jnp.asarray(problem.starts, jnp.float32)[tokens[:, 0]] * jnp.exp(logp.sum(1))
    return logp, chance, model.values(tokens, mask, hidden)[:, :-1]


def exact_scores(problem: Process, state: TrainState) -> jax.Array:
    """f32[H]: J of the policy itself, not of a sample."""
    tokens, rewards = problem.paths
    returns = rewards.sum(1) * problem.share[:, tokens[:, 0]].T
    return (read(problem, state)[1][:, None] * jnp.asarray(returns, jnp.float32)).sum(0)


def draw(problem: Process, state: TrainState, key: jax.Array) -> Rollout:
    """S sequences of the policy by systematic sampling: a path occurs S times its chance, give or take one.

    As unbiased as independent draws. Rows lie in the order of the paths, so that strided minibatches are systematic
    samples as well.
    """
    logp, chance, values = read(problem, state)
    cumulative = jnp.cumsum(chance)
    points = (jnp.arange(SEQUENCES) + jax.random.uniform(key)) / SEQUENCES * cumulative[-1]
    rows = jnp.minimum(jnp.searchsorted(cumulative, points, side="right"), len(chance) - 1)
    tokens, rewards = (jnp.asarray(x)[rows] for x in problem.paths)
    split = len(problem.objectives)
    return Rollout(
        tokens=tokens,
        context_mask=jnp.ones((SEQUENCES, 1), bool),
        resp_mask=jnp.ones((SEQUENCES, problem.length), bool),
        logp_old=logp[rows],
        values_old=values[rows],
        objectives=rewards[..., :split].astype(jnp.float32),
        constraints=rewards[..., split:].astype(jnp.float32),
        applies=jnp.asarray(problem.applies.T)[tokens[:, 0]],
    )


def names(problem: Process) -> dict[str, Any]:
    return {
        "objectives": tuple(f"objective_{k}" for k in range(len(problem.objectives))),
        "constraints": tuple(f"constraint_{m}" for m in range(len(problem.constraints))),
    }


@cache
def compiled(problem: Process, config: StepConfig, compiler_options):
    """One program for all rollouts and steps: state -> state, (J f32[N, H], lambda f32[N, M], its price f32[N, M])."""
    step = compile_step(config, donate=False)

    def iterate(state, rollout_number):
        entropy = 0.1 * jnp.maximum(0.5 ** (rollout_number / HALF), 0.01)
        state = state.replace(hyper=state.hyper.replace(entropy_coef=entropy))
        rollout = draw(problem, state, jax.random.fold_in(state.key, rollout_number))
        new, metrics = step(state, rollout)
        prices = jnp.stack([metrics[f"multiplier_kkt/{name}"] for name in config.constraints])
        return new, (exact_scores(problem, new), new.multipliers.value, prices)

    return jax.jit(
        lambda state: jax.lax.scan(iterate, state, jnp.arange(ROLLOUTS)),
        compiler_options=compiler_options and dict(compiler_options),
    )


@dataclass(frozen=True)
class Outcome:
    """Means over the last quarter of the rollouts: J [H], lambda [M] and lambda in units of reward [M]."""

    scores: np.ndarray
    multipliers: np.ndarray
    prices: np.ndarray


@pytest.fixture(scope="module")
def train(core):
    """Train on a problem: `clip`, two epochs of two minibatches, no KL; changes of the config by name."""
    options = core.fast_compile()
    options = options and tuple(options.items())

    def run(problem: Process, *, model=None, tx=None, numbers=None, **changes) -> Outcome:
        defaults: dict[str, Any] = {
            "epochs": 2,
            "minibatches": 2,
            "adv_norm": "center",
            "kl": "none",
            "weights": "fixed",
        }
        config = StepConfig(**({"entropy_bonus": True} | defaults | names(problem) | changes))
        settings: dict[str, Any] = {
            "learning_rate": problem.learning_rate,
            "value_learning_rate": 0.5,
            "warmup_steps": 0,
            "thresholds": dict(zip(config.constraints, problem.thresholds.tolist(), strict=True)),
            "objective_weights": dict(zip(config.objectives, problem.weights.tolist(), strict=True)),
            "multiplier_ki": 0.1,
            # Systematic samples need no smoothing, and the delay of a running mean feeds the circling.
            "multiplier_ema": 0.0,
        }
        numbers = StepNumbers(**(settings | (numbers or {})))
        state = init_state(model or Table(problem), config, numbers, tx=tx or PLAIN)
        _, histories = compiled(problem, config, options)(state)
        last = slice(ROLLOUTS * 3 // 4, None)
        return Outcome(*(np.asarray(history[last], np.float64).mean(0) for history in histories))

    return run


def assert_optimal(problem: Process, outcome: Outcome) -> None:
    optimum, split = problem.optimum, len(problem.weights)
    value = (problem.weights * outcome.scores[:split]).sum()
    np.testing.assert_allclose(outcome.scores[split:], problem.thresholds, rtol=0, atol=THRESHOLD_ERROR)
    np.testing.assert_allclose(value, optimum.value, rtol=0, atol=VALUE_ERROR)
    np.testing.assert_allclose(outcome.prices, optimum.multipliers, rtol=0, atol=MULTIPLIER_ERROR)


# ---- what comes out ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["pid", "clip"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_policy_is_the_programs_and_lambda_its_dual(train, name, rule):
    outcome = train(PROBLEMS[name], multipliers=rule)
    assert_optimal(PROBLEMS[name], outcome)
    np.testing.assert_allclose(outcome.multipliers, outcome.prices, rtol=1e-5)  # in units of reward already


@pytest.mark.parametrize("rule", ["softplus", "exp", "sigmoid"])
def test_transformed_multipliers_have_the_same_fixed_point(train, rule):
    """The dual is within their range (`sigmoid`: below 1); a larger gain makes up for the transform's slope."""
    numbers = {"multiplier_lr": 0.2, "multiplier_init": 0.5}
    assert_optimal(PROBLEMS["two arms"], train(PROBLEMS["two arms"], multipliers=rule, numbers=numbers))


@pytest.mark.parametrize("changes", [{"adv_norm": "none", "mix_norm": "none"}, {"mix_norm": "sum_to_one"}], ids=str)
def test_other_norms_have_the_same_fixed_point(train, changes):
    """A baseline or a common factor of all streams moves neither the policy nor lambda."""
    assert_optimal(PROBLEMS["three arms"], train(PROBLEMS["three arms"], **changes))


def test_lambda_is_an_exchange_rate_under_stream_normalisation(train):
    """With advantages of unit variance lambda sigma_k / sigma_m is the dual, which `multiplier_kkt` reports.

    The rewards of the two arms are 1, 0.4 and 0, 1, so that sigma_k = 0.6 sigma_m whatever the policy, and lambda is
    not the dual, 0.6, but 1.
    """
    problem = PROBLEMS["two arms"]
    outcome = train(problem, adv_norm="stream", numbers={"learning_rate": 0.5})
    np.testing.assert_allclose(outcome.multipliers, 1.0, rtol=0, atol=MULTIPLIER_ERROR)
    assert_optimal(problem, outcome)


def test_a_transformer_with_adam_gets_there_too(train):
    """The real model and the default optimizer; the state has to be found in the tokens.

    Adam's steps do not shrink with the gradient, so its rate has to fall for the circling to end, and start low: from
    2e-3 five of five initialisations get there, from 5e-3 three of five settle on a policy that does not tell states
    apart well enough while its entropy bonus fades.
    """
    problem = PROBLEMS["process"]
    numbers = {"learning_rate": 2e-3, "value_learning_rate": 1e-2, "decay_steps": ROLLOUTS}
    assert_optimal(problem, train(problem, model=decoder(problem), tx=default_optimizer(), numbers=numbers))


@pytest.mark.parametrize("name", PROBLEMS)
def test_equal_weights_in_one_sum_do_not(train, name):
    """`clip = mixed`, all streams weighed alike: trained as well, to the vertex that is best for the sum, 0.1 or more
    below a threshold or below the constrained optimum.
    """
    problem, optimum = PROBLEMS[name], PROBLEMS[name].optimum
    objectives, streams = len(problem.objectives), len(problem.rewards)
    equal = np.full(streams, 1 / objectives)
    numbers = {"objective_weights": {}, "multiplier_init": 1 / objectives}
    outcome = train(problem, multipliers="fixed", clip="mixed", mix_norm="none", numbers=numbers)
    best = problem.solve(equal, constrained=False)
    np.testing.assert_allclose((equal * outcome.scores).sum(), best.value, rtol=0, atol=VALUE_ERROR)
    violation = (problem.thresholds - outcome.scores[objectives:]).max()
    loss = optimum.value - (problem.weights * outcome.scores[:objectives]).sum()
    assert max(violation, loss) > 0.1


@pytest.mark.parametrize(
    ("weight", "scores"), [(0.3, (1.0, 0.0)), (0.5, (1.0, 0.0)), (0.7, (0.4, 1.0)), (3, (0.4, 1.0))]
)
def test_no_weight_of_the_sum_gives_the_mixed_optimum(train, weight, scores):
    """Below the dual, 0.6, the sum takes the arm that breaks the constraint, above it the one that overdoes it."""
    numbers = {"multiplier_init": weight}
    outcome = train(PROBLEMS["two arms"], multipliers="fixed", clip="mixed", mix_norm="none", numbers=numbers)
    np.testing.assert_allclose(outcome.scores, scores, rtol=0, atol=VALUE_ERROR)
