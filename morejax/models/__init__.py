"""Flax NNX modules: one decoder, its heads, and the models built of them."""

from morejax.models.actor_critic import ActorCritic, CriticConfig
from morejax.models.decoder import Decoder, DecoderConfig
from morejax.models.heads import PolicyHead, RewardHead, ValueHead, pool
from morejax.models.split import merge, split

__all__ = [
    "ActorCritic",
    "CriticConfig",
    "Decoder",
    "DecoderConfig",
    "PolicyHead",
    "RewardHead",
    "ValueHead",
    "merge",
    "pool",
    "split",
]
