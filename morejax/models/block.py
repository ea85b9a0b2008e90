"""One pre-norm transformer block: norms, attention, MLP."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from morejax.models.attention import Attention, out_scale, rms_norm
from morejax.models.decoder_config import DecoderConfig
from morejax.models.dropout import Dropout, dropped
from morejax.models.linear import Linear
from morejax.models.rope import Rotation


class Sight(NamedTuple):
    """What attention needs to know of the positions it reads."""

    full: jax.Array
    """f32[B, 1, Q, P]: additive bias, who sees whom."""
    windowed: jax.Array | None = None
    """The same for layers with a sliding window; None where none has."""
    rotation: Rotation | None = None
    """Of the Q positions; None with learned ones."""

    def bias(self, windowed: jax.Array | bool, start: int = 0) -> jax.Array:
        """The bias of a layer, for queries from `start` on."""
        if self.windowed is None or windowed is False:
            return self.full[:, :, start:]
        if windowed is True:
            return self.windowed[:, :, start:]
        return jnp.where(windowed, self.windowed, self.full)[:, :, start:]


def norm(config: DecoderConfig, rngs: nnx.Rngs) -> nnx.Module:
    """The norm of the residual stream."""
    if config.norm == "rms":
        return rms_norm(config.width, config, rngs)
    return nnx.LayerNorm(config.width, epsilon=config.norm_eps, dtype=jnp.float32, rngs=rngs)


class Block(nnx.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        width, hidden = config.width, config.hidden_width
        self.kind = config.mlp
        self.norm1 = norm(config, rngs)
        self.attention = Attention(config, rngs)
        self.norm2 = norm(config, rngs)
        self.up = Linear(width, {"up": hidden}, 0.02, config.mlp_bias, config, rngs)
        self.down = Linear(hidden, {"down": width}, out_scale(config), config.mlp_bias, config, rngs)
        gate = {"gate": hidden}
        self.gate = Linear(width, gate, 0.02, config.mlp_bias, config, rngs) if config.mlp == "swiglu" else None

    def mlp(self, x: jax.Array, dropout: Dropout | None = None) -> jax.Array:
        """x plus the MLP of its norm, `[B, Q, D]`."""
        y = self.norm2(x)
        if self.gate is not None:
            inner = jax.nn.silu(self.gate(y)) * self.up(y)
        else:
            inner = jax.nn.gelu(self.up(y), approximate=self.kind == "gelu_tanh")
        return x + dropped(self.down(inner), dropout, 1)

    def __call__(
        self,
        x: jax.Array,
        sight: Sight,
        windowed: jax.Array | bool = False,
        start: int = 0,
        dropout: Dropout | None = None,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The block's output at positions from `start` on, and keys and values `[B, K, Q, E]` of all of them.

        Args:
          x: `[B, Q, D]`.
          sight: of these positions.
          windowed: has this layer the sliding window? Known when tracing, or bool[].
          start: first position whose output is wanted.
          dropout: of what attention and MLP add, this layer's draw; None: none.
        """
        q, k, v = self.attention.project(self.norm1(x), sight.rotation, start)
        mixed = self.attention.attend(q, k, v, sight.bias(windowed, start), causal=True)
        return self.mlp(x[:, start:] + dropped(mixed, dropout, 0), dropout), k, v
