"""MultiWOZ 2.2 end to end: corpus, supervised policy, scaffold, reward heads, constrained PPO, standard scores."""

from morejax.experiments.multiwoz.config import MultiwozConfig, preset

__all__ = ["MultiwozConfig", "preset"]
