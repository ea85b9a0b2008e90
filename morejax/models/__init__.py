"""Flax NNX modules: one decoder, its heads, and the models built of them."""

from morejax.models.actor_critic import ActorCritic, CriticConfig
from morejax.models.decoder import Decoder
from morejax.models.decoder_config import DecoderConfig, LoraConfig, RopeConfig
from morejax.models.heads import PolicyHead, RewardHead, ValueHead, pool
from morejax.models.split import merge, split

__all__ = [
    "ActorCritic",
    "CriticConfig",
    "Decoder",
    "DecoderConfig",
    "LoraConfig",
    "PolicyHead",
    "RewardHead",
    "RopeConfig",
    "ValueHead",
    "merge",
    "pool",
    "split",
]
