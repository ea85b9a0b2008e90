"""The shop end to end: corpus, supervised policy, scaffold, reward heads, constrained PPO, scores, A/B test."""

from morejax.experiments.shop.config import ShopConfig, preset

__all__ = ["ShopConfig", "preset"]
