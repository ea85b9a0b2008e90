"""Runnable experiments: `python -m morejax.experiments.multiwoz`."""
