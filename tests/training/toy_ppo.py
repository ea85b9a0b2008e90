"""A task so small that its PPO runs in seconds: what the tests of rollouts and of the loop share."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from morejax.config import StepConfig, StepNumbers
from morejax.models import ActorCritic, CriticConfig, DecoderConfig, RewardHead, split
from morejax.models.split import merge
from morejax.state import init_state
from morejax.tasks.streams import NonFiniteStream, StackedStreams
from morejax.training.ppo_config import PPOConfig
from morejax.training.rollouts import Frozen, Shapes

STEP = StepConfig(objectives=("low",), constraints=("short",), minibatches=2)
SHAPES = Shapes(turns=8, context=4, reasoned=6, reply=3)
LOOP = PPOConfig(iterations=5, turns=8, eval_every=2, checkpoint_every=3, keep="last")
DECODER = DecoderConfig(vocab_size=64, max_length=16, layers=1, width=8, heads=2)


@dataclass(frozen=True)
class Prompt:
    """What the loop reads of a turn's prompts."""

    direct: tuple[int, ...]
    reasoned: tuple[int, ...]
    turn: int = 0


class Task:
    """Low tokens are good; replies should have one token. NaN at the n-th rollout, if asked for."""

    eos_id, pad_id = 1, 0

    def __init__(self, nan_at=None):
        self.rollouts, self.nan_at = 0, nan_at

    turn_by_turn = aloud = False

    def sampled(self, prompts, replies, lm_logp, natural):
        assert lm_logp.shape == natural.shape == (len(prompts),)
        return replies

    def rewards(self, replies, reply):
        self.rollouts += 1
        if self.rollouts == self.nan_at:
            raise NonFiniteStream("stream 'low': reward is nan for dialogue a, turn 0, expected finite values")
        scores = np.array([[np.mean([t < 32 for t in ids]), len(ids) == 1] for ids in replies], np.float32)
        rewards = np.zeros((len(replies), reply, 2), np.float32)
        rewards[np.arange(len(replies)), [len(ids) - 1 for ids in replies]] = scores
        ones = np.ones_like(scores)
        return StackedStreams(("low", "short"), rewards, ones.astype(bool), scores, ones)


def dialogues(sizes=(3, 2, 4, 2)):
    made = iter(range(2, 60))
    return [[Prompt((t := next(made), t + 1), (t, t + 1, 5, 6), turn) for turn in range(size)] for size in sizes]


def build_models(core):
    """A policy with its parameters, and what is frozen beside it; `core` makes parameters at random."""
    critic = CriticConfig(kind="shared", hidden=4)
    graphdef, abstract = split(nnx.eval_shape(lambda: ActorCritic(DECODER, critic=critic, streams=2, rngs=nnx.Rngs(0))))
    params = core.random_params(abstract)
    frozen_graphdef, like = split(nnx.eval_shape(lambda: ActorCritic(DECODER, rngs=nnx.Rngs(0))))
    head_graphdef, head = split(nnx.eval_shape(lambda: RewardHead(8, hidden=4, rngs=nnx.Rngs(0))))
    reference, language_model, head = (
        core.random_params(tree, seed) for seed, tree in enumerate((like, like, head), 1)
    )
    return graphdef, params, Frozen(frozen_graphdef, reference, language_model, head_graphdef, head)


def fresh_state(models, numbers=None):
    graphdef, params, _ = models
    numbers = numbers or StepNumbers(thresholds={"short": 0.5}, learning_rate=0.01, warmup_steps=0)
    return init_state(merge(graphdef, jax.tree.map(jnp.copy, params)), STEP, numbers)
