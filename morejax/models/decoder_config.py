"""What a decoder looks like: one set of flags for GPT-2 and the Llama line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embeddings [arXiv 2104.09864] and how they are stretched past the trained length."""

    theta: float = 10000.0
    """Base of the wavelengths: pair i of E/2 turns by `theta^(-2i/E)` radians a position."""
    scaling: Literal["none", "linear", "llama3", "yarn"] = "none"
    """How frequencies change: none; linear: all divided by `factor`; llama3: the slow ones only; yarn
    [arXiv 2309.00071]: the slow ones, and attention gets sharper."""
    factor: float = 1.0
    """How many times longer than the trained length."""
    original_length: int = 0
    """Positions of the first training (llama3, yarn)."""
    low_frequency: float = 1.0
    """llama3: frequencies with fewer turns than this over `original_length` are divided by `factor`."""
    high_frequency: float = 4.0
    """llama3: those with more turns than this stay; in between the two are mixed."""
    beta_fast: float = 32.0
    """yarn: frequencies with more turns than this over `original_length` stay."""
    beta_slow: float = 1.0
    """yarn: those with fewer turns than this are divided by `factor`."""
    attention_factor: float = 0.0
    """yarn: multiplies the rotated queries and keys; 0 takes `0.1 ln(factor) + 1`."""

    def __post_init__(self) -> None:
        if self.scaling not in ("none", "linear", "llama3", "yarn"):
            raise ValueError(f"--model.rope.scaling must be none, linear, llama3 or yarn, not {self.scaling!r}")
        if self.theta <= 1:
            raise ValueError(f"--model.rope.theta must be above 1, not {self.theta}")
        if self.factor < 1 or (self.scaling == "none" and self.factor != 1):
            wanted = "1 with --model.rope.scaling none" if self.scaling == "none" else "at least 1"
            raise ValueError(f"--model.rope.factor must be {wanted}, not {self.factor}")
        if self.scaling in ("llama3", "yarn") and self.original_length < 1:
            raise ValueError(
                f"--model.rope.scaling {self.scaling} needs --model.rope.original-length of at least 1, "
                f"not {self.original_length}"
            )
        if self.low_frequency >= self.high_frequency:
            raise ValueError(
                f"--model.rope.low-frequency {self.low_frequency} must be below --model.rope.high-frequency "
                f"{self.high_frequency}"
            )


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters on frozen weights [arXiv 2106.09685]: W becomes W + (alpha / rank) A B."""

    rank: int = 0
    """Rank of the adapters; 0: none, all parameters are trained."""
    alpha: float = 16.0
    """Strength: what they add is multiplied by alpha / rank."""
    targets: str = "q|k|v|out|gate|up|down"
    """Which matrices of a block get adapters: a regular expression that the whole name must match."""
    trained: str = ""
    """Other parameters that are trained as they are: a regular expression searched for in their path, e.g.
    `embedding|norm` (new tokens need their embeddings trained). Empty: none."""

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ValueError(f"--model.lora.rank must be at least 0, not {self.rank}")
        if self.alpha <= 0:
            raise ValueError(f"--model.lora.alpha must be above 0, not {self.alpha}")
        for name, pattern in (("targets", self.targets), ("trained", self.trained)):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"--model.lora.{name} {pattern!r} is no regular expression ({error})") from error
        if self.rank and not any(re.fullmatch(self.targets, name) for name in ADAPTABLE):
            raise ValueError(f"--model.lora.targets {self.targets!r} matches none of {', '.join(ADAPTABLE)}")


ADAPTABLE = ("q", "k", "v", "out", "gate", "up", "down")
"""Names of the matrices of a block."""


@dataclass(frozen=True)
class DecoderConfig:
    """Shape and numerics of a decoder; the defaults are GPT-2's kind."""

    vocab_size: int = 4096
    """Number of token ids; a multiple of 64 keeps sampling fast."""
    vocab_multiple: int = 1
    """Rows of the embedding and of the head are filled up to a multiple of this (so that a mesh divides them); the
    logits of the filler are -1e9, and nothing is ever drawn from it."""
    max_length: int = 256
    """Largest number of positions (context + response)."""
    layers: int = 4
    """Number of transformer blocks."""
    width: int = 192
    """Width of the residual stream."""
    heads: int = 6
    """Attention heads."""
    kv_heads: int = 0
    """Heads of keys and values, each shared by heads / kv_heads queries [arXiv 2305.13245]; 0: as many as `heads`."""
    head_dim: int = 0
    """Width of a head; 0: width / heads."""
    mlp: Literal["gelu_tanh", "gelu", "swiglu"] = "gelu_tanh"
    """MLP: `down(gelu(up x))` with gelu's tanh form or its exact one, or `down(silu(gate x) * up x)`."""
    mlp_ratio: int = 4
    """Hidden width of the MLP over `width`."""
    mlp_width: int = 0
    """Hidden width of the MLP; 0: mlp_ratio * width."""
    norm: Literal["layer", "rms"] = "layer"
    """LayerNorm with scale and bias, or RMSNorm with a scale."""
    norm_eps: float = 1e-6
    """Added to the variance (or mean square)."""
    positions: Literal["learned", "rope"] = "learned"
    """A table of `max_length` positions, or rotated queries and keys."""
    rope: RopeConfig = field(default_factory=RopeConfig)
    """Of `positions = rope`."""
    shift: bool = False
    """Add a learned share of the embedding of the token before to every token's. A head can then look up what follows a
    word directly, which otherwise takes two layers and long training (smeared keys: Olsson et al., arXiv 2209.11895).
    For small models from scratch that read numbers off their context; no family of pre-trained models has it."""
    qkv_bias: bool = True
    """Biases of queries, keys and values."""
    out_bias: bool = True
    """Bias of attention's output."""
    mlp_bias: bool = True
    """Biases of the MLP."""
    qk_norm: bool = False
    """RMSNorm of every query and key, before they are rotated (Qwen3)."""
    tied: bool = True
    """The head is the embedding; otherwise it has a matrix of its own."""
    window: int = 0
    """Positions that a position sees, itself included (sliding window); 0: all before it."""
    window_layers: tuple[int, ...] = ()
    """Layers with the window, from 0; empty: all of them."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Adapters to train instead of the weights."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type; parameters, norms, softmax and logits stay float32."""
    scan: bool = False
    """Run the stacked layers by `lax.scan` (compile time flat in depth) instead of unrolling them (faster on CPU)."""
    remat: Literal["none", "dots", "full"] = "none"
    """Rematerialisation of a block in the backward pass; dots keeps matrix products."""

    def __post_init__(self) -> None:
        if isinstance(self.rope, Mapping):  # as JSON has it
            object.__setattr__(self, "rope", RopeConfig(**self.rope))
        if isinstance(self.lora, Mapping):
            object.__setattr__(self, "lora", LoraConfig(**self.lora))
        _check_choices(self)
        _check_sizes(self)
        _check_combinations(self)

    @property
    def head_width(self) -> int:
        """E: width of a head."""
        return self.head_dim or self.width // self.heads

    @property
    def key_heads(self) -> int:
        """Heads of keys and values."""
        return self.kv_heads or self.heads

    @property
    def hidden_width(self) -> int:
        """Hidden width of the MLP."""
        return self.mlp_width or self.mlp_ratio * self.width

    @property
    def vocab_rows(self) -> int:
        """Rows of the embedding and of the head, filler included."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    def windowed(self, layer: int) -> bool:
        """Has this layer the sliding window?"""
        return self.window > 0 and (not self.window_layers or layer in self.window_layers)

    def resized(self, *, layers: int, width: int, heads: int) -> DecoderConfig:
        """A decoder of the same kind and another size, every head with keys of its own, no window and no adapters."""
        sizes: dict[str, Any] = {"kv_heads": 0, "head_dim": 0, "mlp_width": 0, "window": 0, "window_layers": ()}
        sizes |= {"lora": LoraConfig()}
        return replace(self, layers=layers, width=width, heads=heads, **sizes)


_CHOICES = {
    "mlp": ("gelu_tanh", "gelu", "swiglu"),
    "norm": ("layer", "rms"),
    "positions": ("learned", "rope"),
    "dtype": ("float32", "bfloat16"),
    "remat": ("none", "dots", "full"),
}


def _flag(name: str) -> str:
    return f"--model.{name.replace('_', '-')}"


def _check_choices(config: DecoderConfig) -> None:
    for name, choices in _CHOICES.items():
        if getattr(config, name) not in choices:
            listed = f"{', '.join(choices[:-1])} or {choices[-1]}"
            raise ValueError(f"{_flag(name)} must be {listed}, not {getattr(config, name)!r}")


def _check_sizes(config: DecoderConfig) -> None:
    at_least_one = ("vocab_size", "vocab_multiple", "max_length", "layers", "width", "heads", "mlp_ratio")
    at_least_zero = ("kv_heads", "head_dim", "mlp_width", "window", "norm_eps")
    for least, names in ((1, at_least_one), (0, at_least_zero)):
        for name in names:
            if getattr(config, name) < least:
                raise ValueError(f"{_flag(name)} must be at least {least}, not {getattr(config, name)}")


def _check_combinations(config: DecoderConfig) -> None:
    if not config.head_dim and config.width % config.heads:
        raise ValueError(f"--model.width {config.width} must be a multiple of --model.heads {config.heads}")
    if config.heads % config.key_heads:
        raise ValueError(f"--model.heads {config.heads} must be a multiple of --model.kv-heads {config.kv_heads}")
    if config.positions == "rope" and config.head_width % 2:
        raise ValueError(f"--model.positions rope needs an even --model.head-dim, not {config.head_width}")
    if config.positions == "learned" and config.rope != RopeConfig():
        raise ValueError("--model.rope has no effect with --model.positions learned: give --model.positions rope")
    if config.window_layers and not config.window:
        raise ValueError(f"--model.window-layers {config.window_layers} needs --model.window, which is 0")
    outside = [layer for layer in config.window_layers if not 0 <= layer < config.layers]
    if outside:
        raise ValueError(f"--model.window-layers {outside} must be in [0, --model.layers {config.layers})")
