"""Policy and critic as one module, so that one graph definition describes all that a step trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
from flax import nnx

from morejax.models.decoder import Decoder
from morejax.models.decoder_config import DecoderConfig
from morejax.models.dropout import Dropout
from morejax.models.heads import PolicyHead, ValueHead


@dataclass(frozen=True)
class CriticConfig:
    """Where the H value estimates come from."""

    kind: Literal["own", "shared", "base", "none"] = "own"
    """own: a small trunk of its own; shared: heads on the policy's trunk behind a stop_gradient; base: adapters of its
    own on the policy's frozen weights (LoRA); none: no critic, for group baselines."""
    layers: int = 2
    """Blocks of the critic's own trunk."""
    width: int = 128
    """Width of the critic's own trunk."""
    heads: int = 4
    """Attention heads of the critic's own trunk."""
    hidden: int = 128
    """Hidden width of the value head."""

    def __post_init__(self) -> None:
        if self.kind not in ("own", "shared", "base", "none"):
            raise ValueError(f"--critic.kind must be own, shared, base or none, not {self.kind!r}")


class Value(nnx.Module):
    """H values per position, from a trunk of its own or from the policy's hidden states."""

    def __init__(self, policy: DecoderConfig, critic: CriticConfig, streams: int, rngs: nnx.Rngs):
        if critic.kind == "base" and not policy.lora.rank:
            raise ValueError("--critic.kind base needs adapters: give --model.lora.rank")
        own = policy.resized(layers=critic.layers, width=critic.width, heads=critic.heads)
        config = {"own": own, "base": policy}.get(critic.kind)
        self.trunk = None if config is None else Decoder(config, rngs)
        width = policy.width if config is None else config.width
        self.head = ValueHead(width, streams, hidden=critic.hidden, rngs=rngs)

    def __call__(self, tokens: jax.Array, mask: jax.Array, policy_hidden: jax.Array, start: int = 0) -> jax.Array:
        """i32[B, Q], bool[B, Q], f32[B, Q, D] to f32[B, Q, H]; never sends a gradient into the policy."""
        if self.trunk is None:
            return self.head(jax.lax.stop_gradient(policy_hidden))
        return self.head(self.trunk.hidden(tokens, mask, start))


class ActorCritic(nnx.Module):
    """Trunk, policy head and value: parameters under `trunk`, `policy` (when untied) and `value`."""

    def __init__(
        self,
        config: DecoderConfig,
        *,
        critic: CriticConfig | None = None,
        streams: int = 0,
        rngs: nnx.Rngs,
    ):
        self.trunk = Decoder(config, rngs)
        self.policy = PolicyHead(config, tied=config.tied, rngs=rngs)
        if critic is not None and critic.kind == "none":
            critic = None
        self.value = Value(config, critic, streams, rngs) if critic is not None else None

    def hidden(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Final hidden states f32[B, Q, D] of the policy."""
        return self.trunk.hidden(tokens, mask)

    def response_hidden(
        self, tokens: jax.Array, mask: jax.Array, context: int, dropout: Dropout | None = None
    ) -> jax.Array:
        """Hidden states f32[B, T, D] that predict the response: the last block runs on these positions only."""
        return self.trunk.hidden(tokens[:, :-1], mask[:, :-1], context - 1, dropout)

    def response_values(self, tokens: jax.Array, mask: jax.Array, hidden: jax.Array, context: int) -> jax.Array:
        """Values f32[B, T, H] before every response token; `hidden` as `response_hidden` gives it."""
        return self.critic(tokens[:, :-1], mask[:, :-1], hidden, context - 1)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Token logits f32[..., V] of hidden states f32[..., D]."""
        return self.policy(hidden, self.trunk)

    def values(self, tokens: jax.Array, mask: jax.Array, hidden: jax.Array) -> jax.Array:
        """Values f32[B, Q, H] in units of the stream's running scale."""
        return self.critic(tokens, mask, hidden)

    @property
    def critic(self) -> Value:
        """The critic.

        Raises:
          ValueError: there is none.
        """
        if self.value is None:
            raise ValueError("this model was built without a critic: pass critic=CriticConfig(...)")
        return self.value
