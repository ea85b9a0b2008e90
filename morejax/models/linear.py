"""A linear map, on whose frozen weights low-rank adapters may stand (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
from flax import nnx

from morejax.models.decoder_config import DecoderConfig


class Linear(nnx.Linear):
    """x W + b, plus (alpha / rank) (x A) B where there are adapters; W may be several matrices side by side.

    `lora_a` is `[in, parts rank]` and `lora_b` is `[rank, columns of those parts]`: every adapted part has its own A.

    Args:
      width: of the input.
      parts: name and columns of every matrix; the names are what `LoraConfig.targets` chooses by.
      scale: standard deviation of the first weights.
      bias: is there one?
      config: of the decoder: compute type and adapters.
      rngs: of the first weights.
    """

    def __init__(
        self, width: int, parts: dict[str, int], scale: float, bias: bool, config: DecoderConfig, rngs: nnx.Rngs
    ):
        kernel_init = nnx.initializers.normal(scale)
        dtype, columns = jnp.dtype(config.dtype), sum(parts.values())
        super().__init__(width, columns, use_bias=bias, dtype=dtype, kernel_init=kernel_init, rngs=rngs)
        lora = config.lora
        self.widths = tuple(parts.values())
        self.adapted = tuple(lora.rank > 0 and re.fullmatch(lora.targets, name) is not None for name in parts)
        self.rank, self.adapter_scale = lora.rank, lora.alpha / max(lora.rank, 1)
        shapes = (width, sum(self.adapted) * lora.rank), (lora.rank, self._places()[-1][1].stop)
        has_any = any(self.adapted)
        first = (3 * width) ** -0.5 * jax.random.normal(rngs.params(), shapes[0], jnp.float32) if has_any else None
        # As everywhere: B = 0, so that the adapted model begins as the frozen one.
        self.lora_a = None if first is None else nnx.Param(first)
        self.lora_b = None if first is None else nnx.Param(jnp.zeros(shapes[1], jnp.float32))

    def __call__(self, x: jax.Array, out_sharding=None) -> jax.Array:
        """`[..., in]` to `[..., out]`."""
        y = super().__call__(x, out_sharding)
        return y if self.lora_a is None else y + self._adapters(x, 0, len(self.widths))

    def some(self, x: jax.Array, first: int, last: int) -> jax.Array:
        """The columns of parts [first, last) alone."""
        columns = slice(sum(self.widths[:first]), sum(self.widths[:last]))
        y = jnp.dot(x.astype(self.dtype), self.kernel[...][:, columns].astype(self.dtype))
        if self.bias is not None:
            bias = self.bias[...][columns].astype(self.dtype)
            y = y + bias.reshape((1,) * (y.ndim - 1) + bias.shape)
        return y if self.lora_a is None else y + self._adapters(x, first, last)

    def _adapters(self, x: jax.Array, first: int, last: int) -> jax.Array:
        """What the adapters add to parts [first, last); 0 where a part has none."""
        found = [
            (inside, outside) if used else None
            for used, (inside, outside) in zip(self.adapted, self._places(), strict=True)
        ][first:last]
        x = x.astype(self.dtype)
        return jnp.concatenate(
            [
                jnp.zeros((*x.shape[:-1], width), self.dtype) if place is None else self._one(x, *place)
                for place, width in zip(found, self.widths[first:last], strict=True)
            ],
            axis=-1,
        )

    def _places(self) -> list[tuple[slice, slice]]:
        """Columns of `lora_a` and of `lora_b` that belong to each part."""
        places, inside, outside = [], 0, 0
        for used, width in zip(self.adapted, self.widths, strict=True):
            step = (self.rank, width) if used else (0, 0)
            places.append((slice(inside, inside + step[0]), slice(outside, outside + step[1])))
            inside, outside = inside + step[0], outside + step[1]
        return places

    def _one(self, x: jax.Array, inside: slice, outside: slice) -> jax.Array:
        assert self.lora_a is not None
        assert self.lora_b is not None
        first, second = self.lora_a[...][:, inside], self.lora_b[...][:, outside]
        low = jnp.dot(x, first.astype(self.dtype))
        return jnp.dot(low, second.astype(self.dtype)) * self.adapter_scale
