"""The workloads that are measured, and the least arithmetic that they need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from morejax.models import CriticConfig, DecoderConfig


@dataclass(frozen=True)
class Size:
    """Model and batch of a benchmark."""

    name: str
    layers: int
    width: int
    heads: int
    vocab: int
    sequences: int
    context: int = 128
    response: int = 48

    @property
    def length(self) -> int:
        """Positions of a sequence."""
        return self.context + self.response

    def decoder(self, dtype: Any = "float32", scan: bool = False) -> DecoderConfig:
        """The policy's decoder."""
        return DecoderConfig(
            vocab_size=self.vocab,
            max_length=self.length,
            layers=self.layers,
            width=self.width,
            heads=self.heads,
            dtype=dtype,
            scan=scan,
        )

    def critic(self, kind: Any) -> CriticConfig:
        """A critic on the policy's trunk, or on one of its own that is as large as the policy's."""
        return CriticConfig(kind=kind, layers=self.layers, width=self.width, heads=self.heads)


SIZES = {
    "tiny": Size("tiny", layers=1, width=16, heads=2, vocab=64, sequences=8, context=6, response=4),
    "S": Size("S", layers=4, width=256, heads=8, vocab=8192, sequences=32),
    "M": Size("M", layers=8, width=512, heads=8, vocab=8192, sequences=16),
    # GPT-2 124M, its vocabulary of 50257 filled up to a multiple of 64.
    "L": Size("L", layers=12, width=768, heads=12, vocab=50304, sequences=16),
}


def trunk_flops(size: Size, positions: int) -> float:
    """Least FLOPs of one forward pass of a trunk over sequences of so many positions.

        S L (24 n D^2 + 2 n^2 D)

    24 D^2 a position for the four matrices of a block (12 D^2 multiply-adds), 2 n^2 D for the causal half of the two
    products of attention.
    """
    per_layer = 24 * positions * size.width**2 + 2 * positions**2 * size.width
    return float(size.sequences * size.layers * per_layer)


def head_flops(size: Size) -> float:
    """Least FLOPs of the policy head, on response positions only: 2 S T D V."""
    return 2.0 * size.sequences * size.response * size.width * size.vocab


def update_flops(size: Size, critic: str) -> float:
    """Model FLOPs of one pass of training over the batch: three forward passes of everything that learns.

    The usual count, with every position in every block. The step itself computes less: its last block leaves out what
    it would make of the context, which nobody reads (`hfu` counts what is computed).
    """
    trunks = 2 if critic == "own" else 1
    return 3.0 * (trunks * trunk_flops(size, size.length) + head_flops(size))


def iteration_flops(size: Size, critic: str) -> float:
    """Least FLOPs of an iteration: sampling, the reference, a critic of its own, one pass of training."""
    sampling = trunk_flops(size, size.length - 1) + head_flops(size)  # the last token is not read again
    reference = trunk_flops(size, size.length) + head_flops(size)
    values = trunk_flops(size, size.length) if critic == "own" else 0.0
    return sampling + reference + values + update_flops(size, critic)
