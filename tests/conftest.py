"""Test-wide JAX settings; they must be in force before any backend starts."""

from __future__ import annotations

import jax
from hypothesis import settings

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Compilation makes the first example of every property slow, and CI must not depend on the draw.
settings.register_profile("morejax", deadline=None, max_examples=30, derandomize=True)
settings.load_profile("morejax")
