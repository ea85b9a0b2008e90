"""Replies to prompts that begin alike: keys and values of the common beginning are kept from one to the next."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from morejax.decoding import Read, Sample, decode_replies
from morejax.models.decoder import KVCache
from morejax.models.split import Params, merge
from morejax.rollout import uniform_numbers
from morejax.sampling import SamplerConfig

Ids = tuple[int, ...]


class PrefixCache:
    """One conversation's keys and values.

    A prompt is compared with all that was read and written last; what begins alike is not read again, whoever wrote
    it. Positions are those of the prompt, so the text is the same as without a cache, but for rounding.

    Args:
        graphdef, params: an `ActorCritic`.
        room: positions of the cache: a prompt, its reply, and some padding.
        step: new tokens are filled up to a multiple of this, so that few shapes are compiled.
        dtype: type that keys and values are kept in; None takes the model's compute type.

    Attributes:
        reused: tokens of prompts that were found in the cache, so far.
        read: tokens of prompts that were read, so far.
    """

    def __init__(
        self, graphdef: nnx.GraphDef, params: Params, *, room: int, step: int = 16, dtype: str | None = None
    ) -> None:
        self._graphdef, self._params, self._room, self._step, self._dtype = graphdef, params, room, step, dtype
        self.reused, self.read = 0, 0
        self._extend = jax.jit(partial(_extend, graphdef), donate_argnums=5)
        self._decoders: dict[SamplerConfig, Any] = {}
        self._cache: KVCache | None = None
        self.clear()

    def clear(self) -> None:
        """Forget everything that was read."""
        self._ids: Ids = ()
        # Where each of them lies: padding leaves gaps.
        self._slots = np.zeros(0, np.int64)

    def reply(self, prompt: Sequence[int], config: SamplerConfig, *, seed: int = 0) -> Ids:
        """The tokens of a reply, the end token included.

        Args:
            prompt: token ids, at least one.
            config: one sample without filters that look back; every config is compiled once.
            seed: of the sampler; has no effect at temperature 0.

        Raises:
            ValueError: prompt and reply do not fit into the cache, no prompt, or settings that a cache cannot serve.
        """
        _check(prompt, config)
        common, slot, new = self._place(tuple(prompt), config.max_new_tokens)
        tokens, mask = self._padded(new, config.pad_id)
        filled = np.zeros((1, self._room), bool)
        filled[0, self._slots[:common]] = True
        cache, self._cache = self._cache or self._empty(), None
        position = np.array([common], np.int32)
        before = np.array([prompt[common - 1] if common else -1], np.int32)
        hidden, cache = self._extend(self._params, tokens, mask, (before, position), (np.int32(slot), filled), cache)
        end = slot + tokens.shape[1]
        slots = np.append(self._slots[:common], np.arange(end - len(new), end))
        filled[0, slots] = True
        count, last = (np.array([value], np.int32) for value in (len(prompt), prompt[-1]))
        read = Read(hidden, cache, filled, count, np.int32(end), last)  # type: ignore[arg-type]
        sample, self._cache, held = self._decoder(config)(self._params, read, jax.random.key(seed))
        written = np.asarray(sample.tokens[0])[np.asarray(sample.mask[0])]
        held = min(int(held), len(written))
        self._ids = (*prompt, *map(int, written[:held]))
        self._slots = np.append(slots, np.arange(end, end + held))
        self.reused += common
        self.read += len(new)
        return tuple(map(int, written))

    def _place(self, prompt: Ids, reply: int) -> tuple[int, int, Ids]:
        """How many tokens are there already, the slot that the others begin at, and the others."""
        # The last token is read again in any case: its hidden state is what the reply begins with.
        common = min(_common(prompt, self._ids), len(prompt) - 1)
        for kept in dict.fromkeys((common, 0)):
            slot = int(self._slots[kept - 1]) + 1 if kept else 0
            if slot + self._filled_up(len(prompt) - kept) + reply <= self._room:
                return kept, slot, prompt[kept:]
        raise ValueError(
            f"a prompt of {len(prompt)} tokens (filled up to {self._filled_up(len(prompt))}) and a reply of up to "
            f"{reply} do not fit into a cache of {self._room} positions"
        )

    def _filled_up(self, length: int) -> int:
        return -(-length // self._step) * self._step

    def _padded(self, new: Ids, pad: int) -> tuple[np.ndarray, np.ndarray]:
        length = self._filled_up(len(new))
        mask = np.arange(length)[None] >= length - len(new)
        tokens = np.full((1, length), pad, np.int32)
        tokens[0, length - len(new) :] = new
        return tokens, mask

    def _empty(self) -> KVCache:
        """A cache of this model's shape."""
        shape = jax.eval_shape(partial(_prefill, self._graphdef, self._room, self._dtype), self._params)
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shape)

    def _decoder(self, config: SamplerConfig) -> Any:
        if config not in self._decoders:
            self._decoders[config] = jax.jit(partial(_decode, self._graphdef, config))
        return self._decoders[config]


def _check(prompt: Sequence[int], config: SamplerConfig) -> None:
    if not prompt:
        raise ValueError("a prompt must hold at least one token, found none")
    if config.samples != 1:
        raise ValueError(
            f"a PrefixCache writes one reply at a time: SamplerConfig.samples is {config.samples}, expected 1"
        )
    if config.repetition_penalty != 1:
        raise ValueError(
            "a PrefixCache does not keep which tokens were read: "
            f"SamplerConfig.repetition_penalty is {config.repetition_penalty}, expected 1"
        )


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    length = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        length += 1
    return length


def _prefill(graphdef: nnx.GraphDef, room: int, dtype: str | None, params: Params) -> KVCache:
    one = jnp.ones((1, 1), jnp.int32)
    return merge(graphdef, params).trunk.prefill(one, one > 0, room, dtype)[1]


def _extend(graphdef, params, tokens, mask, behind, place, cache) -> tuple[jax.Array, KVCache]:
    before, position = behind
    slot, filled = place
    return merge(graphdef, params).trunk.extend(tokens, mask, before, position, slot, filled, cache)


def _decode(graphdef, config: SamplerConfig, params, read: Read, key: jax.Array) -> tuple[Sample, Any, jax.Array]:
    uniforms = uniform_numbers(key, 1, config.max_new_tokens)
    sample, read, held = decode_replies(merge(graphdef, params), read, uniforms, config)
    return sample, read.cache, held
