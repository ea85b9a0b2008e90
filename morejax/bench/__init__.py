"""Benchmarks of the step and of whole iterations: `python -m morejax.bench step|iteration --size S --json`."""
