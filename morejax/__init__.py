"""Multi-objective, constrained reinforcement learning of language policies in JAX."""
