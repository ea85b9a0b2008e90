"""Families of pre-trained models: how their checkpoints name and lay out what a decoder's parameters hold.

Every line of a table serves import and export alike. Which lines a model has follows from its flags: a line whose
parameter the model lacks (a bias, a norm of queries, an own head) is passed over.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from morejax.models.decoder_config import DecoderConfig


@dataclass(frozen=True)
class Entry:
    """One parameter and the tensors of a checkpoint that hold it."""

    ours: str
    """Path of the parameter; those under `trunk/blocks` have the layers on their first axis."""
    theirs: tuple[str, ...]
    """Tensor names, `{}` for the layer's number. Several stand side by side on our last axis."""
    transposed: bool = False
    """Theirs is `[out, in]` (torch.nn.Linear), ours `[in, out]`."""

    @property
    def stacked(self) -> bool:
        """Has it a tensor for every layer?"""
        return self.ours.startswith("trunk/blocks/")

    @property
    def vocabulary(self) -> bool:
        """Has it a row for every token id?"""
        return self.ours in ("trunk/embedding", "policy/kernel")

    def widths(self, config: DecoderConfig, columns: int) -> tuple[int, ...]:
        """Columns of ours that each of theirs takes: queries, keys and values, or all."""
        if len(self.theirs) == 1:
            return (columns,)
        keys = config.key_heads * config.head_width
        return config.heads * config.head_width, keys, keys

    def names(self, layer: int) -> tuple[str, ...]:
        """Tensor names of a layer."""
        return tuple(name.format(layer) for name in self.theirs)


@dataclass(frozen=True)
class Family:
    """How one family's checkpoints look."""

    model_type: str
    """As `config.json` has it."""
    architecture: str
    """Class that `transformers` loads the folder with."""
    entries: tuple[Entry, ...]
    prefix: str
    """What names begin with; checkpoints of the bare trunk leave it out."""
    ignored: str = r"rotary_emb\.inv_freq$"
    """Tensors that hold no parameter."""

    def is_ignored(self, name: str) -> bool:
        """Does this tensor hold no parameter?"""
        return re.search(self.ignored, name) is not None


def _linear(ours: str, theirs: tuple[str, ...], transposed: bool) -> tuple[Entry, Entry]:
    weights, biases = (tuple(f"{name}.{kind}" for name in theirs) for kind in ("weight", "bias"))
    return Entry(f"{ours}/kernel", weights, transposed), Entry(f"{ours}/bias", biases)


def _norm(ours: str, theirs: str) -> tuple[Entry, Entry]:
    return Entry(f"{ours}/scale", (f"{theirs}.weight",)), Entry(f"{ours}/bias", (f"{theirs}.bias",))


_BLOCKS, _H, _LAYER = "trunk/blocks", "transformer.h.{}", "model.layers.{}"

# Conv1D keeps its weights as [in, out], queries, keys and values side by side: as ours are.
_GPT2 = (
    Entry("trunk/embedding", ("transformer.wte.weight",)),
    Entry("trunk/positions", ("transformer.wpe.weight",)),
    *_norm(f"{_BLOCKS}/norm1", f"{_H}.ln_1"),
    *_linear(f"{_BLOCKS}/attention/qkv", (f"{_H}.attn.c_attn",), False),
    *_linear(f"{_BLOCKS}/attention/out", (f"{_H}.attn.c_proj",), False),
    *_norm(f"{_BLOCKS}/norm2", f"{_H}.ln_2"),
    *_linear(f"{_BLOCKS}/up", (f"{_H}.mlp.c_fc",), False),
    *_linear(f"{_BLOCKS}/down", (f"{_H}.mlp.c_proj",), False),
    *_norm("trunk/final_norm", "transformer.ln_f"),
    Entry("policy/kernel", ("lm_head.weight",)),
)

_LLAMA = (
    Entry("trunk/embedding", ("model.embed_tokens.weight",)),
    Entry(f"{_BLOCKS}/norm1/scale", (f"{_LAYER}.input_layernorm.weight",)),
    *_linear(f"{_BLOCKS}/attention/qkv", tuple(f"{_LAYER}.self_attn.{x}_proj" for x in "qkv"), True),
    Entry(f"{_BLOCKS}/attention/q_norm/scale", (f"{_LAYER}.self_attn.q_norm.weight",)),
    Entry(f"{_BLOCKS}/attention/k_norm/scale", (f"{_LAYER}.self_attn.k_norm.weight",)),
    *_linear(f"{_BLOCKS}/attention/out", (f"{_LAYER}.self_attn.o_proj",), True),
    Entry(f"{_BLOCKS}/norm2/scale", (f"{_LAYER}.post_attention_layernorm.weight",)),
    *_linear(f"{_BLOCKS}/gate", (f"{_LAYER}.mlp.gate_proj",), True),
    *_linear(f"{_BLOCKS}/up", (f"{_LAYER}.mlp.up_proj",), True),
    *_linear(f"{_BLOCKS}/down", (f"{_LAYER}.mlp.down_proj",), True),
    Entry("trunk/final_norm/scale", ("model.norm.weight",)),
    Entry("policy/kernel", ("lm_head.weight",)),
)

FAMILIES = {
    family.model_type: family
    for family in (
        # Older GPT-2 checkpoints carry their causal masks along.
        Family("gpt2", "GPT2LMHeadModel", _GPT2, "transformer.", ignored=r"\.attn\.(bias|masked_bias)$"),
        Family("llama", "LlamaForCausalLM", _LLAMA, "model."),  # SmolLM2 too
        Family("qwen2", "Qwen2ForCausalLM", _LLAMA, "model."),  # Qwen2.5 too
        Family("qwen3", "Qwen3ForCausalLM", _LLAMA, "model."),
    )
}


def family_of(config: DecoderConfig) -> Family:
    """The family whose checkpoints can hold this decoder.

    Raises:
      ValueError: none can; says for each what stands against it.
    """
    reasons = {name: _against(config, name) for name in FAMILIES}
    for name, reason in reasons.items():
        if not reason:
            return FAMILIES[name]
    listed = "; ".join(f"{name}: {', '.join(reason)}" for name, reason in reasons.items())
    raise ValueError(f"no Hugging Face family has a decoder of this kind ({listed})")


def _against(config: DecoderConfig, model_type: str) -> list[str]:
    """Flags that a family cannot express, as `flag=value`."""
    gpt2 = model_type == "gpt2"
    wanted: dict[str, tuple] = {
        "norm": ("layer",) if gpt2 else ("rms",),
        "positions": ("learned",) if gpt2 else ("rope",),
        "mlp": ("gelu_tanh", "gelu") if gpt2 else ("swiglu",),
        "shift": (False,),
        "qk_norm": (model_type == "qwen3",),
        "qkv_bias": {"gpt2": (True,), "qwen2": (True,)}.get(model_type, (config.out_bias,)),
        "out_bias": {"gpt2": (True,), "qwen2": (False,)}.get(model_type, (config.qkv_bias,)),
        "mlp_bias": {"gpt2": (True,), "llama": (True, False)}.get(model_type, (False,)),
        "key_heads": (config.heads,) if gpt2 else (config.key_heads,),
        "head_width": (config.width // config.heads,) if gpt2 else (config.head_width,),
        "window": (0,) if model_type in ("gpt2", "llama") else (config.window,),
    }
    return [
        f"{flag}={getattr(config, flag)!r}" for flag, values in wanted.items() if getattr(config, flag) not in values
    ]
