"""The state of training: everything that a step changes and that a checkpoint must hold."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct

from morejax import config as configs
from morejax.config import Hyper, StepConfig, StepNumbers
from morejax.lagrange import MultiplierState, init_multipliers
from morejax.models.decoder_config import DecoderConfig
from morejax.models.lora import partition
from morejax.models.split import Bound, Params, split
from morejax.optimizers import optimizer
from morejax.reweight import WeightState, init_weights


class TrainState(struct.PyTreeNode):
    """Parameters, optimizer, multipliers, weights and running statistics. K objectives, M constraints, H = K + M."""

    params: Params
    """Nested dict under `trunk`, `policy` (untied head) and `value`."""
    opt_state: optax.OptState
    multipliers: MultiplierState
    weights: WeightState
    score_ema: jax.Array
    """f32[K]: running mean of the objectives' J."""
    score_initial: jax.Array
    """f32[K]: J of the first rollout in which the objective applied."""
    score_seen: jax.Array
    """i32[K]: rollouts in which the objective applied."""
    running_sigma: jax.Array
    """f32[H]: running std of the advantages; 0 until seen."""
    value_scale: jax.Array
    """f32[H]: running scale of the returns, the unit of the critic; 1 until seen."""
    value_seen: jax.Array
    """bool[H]: has the stream's scale been measured?"""
    kl_coef: jax.Array
    """f32[]: coefficient of the KL to the reference."""
    kl_multiplier: MultiplierState
    """Of the constraint KL <= target, length 1 (`kl_controller = multiplier`)."""
    key: jax.Array
    """PRNG key of the sampler."""
    step: jax.Array
    """i32[]: train steps taken."""
    hyper: Hyper
    structure: nnx.GraphDef = struct.field(pytree_node=False)
    """Of the model."""
    tx: optax.GradientTransformation = struct.field(pytree_node=False)
    frozen: Params | None = None
    """Parameters that are not trained (LoRA's base); None without adapters. They are in no checkpoint."""

    @property
    def graphdef(self) -> nnx.GraphDef | Bound:
        """What `merge` makes a model of, given `params` or other values of them."""
        return self.structure if self.frozen is None else Bound(self.structure, self.frozen)


def default_optimizer() -> optax.GradientTransformation:
    """Adam's preconditioner; the step applies learning rates and norm clipping itself, since both are traced."""
    return optimizer("adam")


def init_state(
    model: nnx.Module,
    config: StepConfig,
    numbers: StepNumbers,
    *,
    seed: int = 0,
    tx: optax.GradientTransformation | None = None,
) -> TrainState:
    """A fresh state around a model that has `hidden`, `logits` and `values` (an `ActorCritic`, or one's own).

    Args:
      model: an NNX module; its critic must give H = len(config.streams) values. Of a decoder with adapters
        (`DecoderConfig.lora`) these and the heads are trained, the rest is kept apart as `frozen`.
      config, numbers: of the step that will train it.
      seed: of the sampler's key.
      tx: optax transformation of both parts' gradients, e.g. of `morejax.optimizers`; its updates are multiplied by
        minus the learning rates.

    Raises:
      ValueError: a number names an unknown stream, or a constraint has no threshold.
    """
    graphdef, params = split(model)
    decoder = getattr(getattr(model, "trunk", None), "config", None)
    frozen = None
    if isinstance(decoder, DecoderConfig) and decoder.lora.rank:
        params, frozen = partition(params, decoder.lora)
    tx = default_optimizer() if tx is None else tx
    kl_rule = config.multipliers if config.kl_controller == "multiplier" else "pid"
    objectives, streams = len(config.objectives), len(config.streams)
    return TrainState(
        params=params,
        opt_state=tx.init(params),
        multipliers=init_multipliers(
            len(config.constraints), configs.initial_multipliers(config, numbers), config.multipliers
        ),
        weights=init_weights(configs.initial_weights(config, numbers)),
        score_ema=jnp.zeros((objectives,), jnp.float32),
        score_initial=jnp.zeros((objectives,), jnp.float32),
        score_seen=jnp.zeros((objectives,), jnp.int32),
        running_sigma=jnp.zeros((streams,), jnp.float32),
        value_scale=jnp.ones((streams,), jnp.float32),
        value_seen=jnp.zeros((streams,), bool),
        kl_coef=jnp.float32(numbers.kl_coef),
        kl_multiplier=init_multipliers(1, numbers.kl_coef, kl_rule, "--numbers.kl-coef"),
        key=jax.random.key(seed),
        step=jnp.int32(0),
        hyper=configs.hyper(config, numbers),
        structure=graphdef,
        tx=tx,
        frozen=frozen,
    )
