"""`python -m morejax.experiments.multiwoz`: train and score a dialogue policy; no arguments run the demo."""

from __future__ import annotations

import logging
import os
import sys
import time
from dataclasses import replace

import tyro

from morejax.experiments.multiwoz.config import PRESETS, MultiwozConfig, preset, resolve

_EPILOG = """
The demo needs no data:        python -m morejax.experiments.multiwoz
MultiWOZ 2.2 on a CPU:         python -m morejax.experiments.multiwoz --preset cpu --data-dir DATA --out runs/mwz
MultiWOZ 2.2 on a GPU:         python -m morejax.experiments.multiwoz --preset gpu --data-dir DATA
continue after a stop:         ... the same command with --resume
a baseline:                    ... --method mixed --mixed-weight 0.5
another number of the step:    ... --numbers.kl-coef 0.1 --numbers.thresholds success 0.85 inform 0.9
only some stages:              ... --stages supervised evaluate
"""


def parse(arguments: list[str]) -> MultiwozConfig:
    """Configuration from the command line; --preset is read first, it gives the other flags' defaults.

    Raises:
        SystemExit: bad flags (status 2), or --help.
    """
    name = "demo"
    for index, argument in enumerate(arguments):
        if argument == "--preset" and index + 1 < len(arguments):
            name = arguments[index + 1]
        elif argument.startswith("--preset="):
            name = argument.partition("=")[2]
    if name not in PRESETS:
        print(f"error: --preset must be one of {', '.join(PRESETS)}, not {name!r}", file=sys.stderr)
        raise SystemExit(2)
    defaults = preset(name)
    config = tyro.cli(
        MultiwozConfig,
        args=arguments,
        # A mapping that is not empty would be offered name by name, and no other name taken.
        default=replace(defaults, numbers=replace(defaults.numbers, thresholds={})),
        prog="python -m morejax.experiments.multiwoz",
        description=f"{MultiwozConfig.__doc__}\n{_EPILOG}",
        config=(tyro.conf.CascadeSubcommandArgs,),
    )
    return resolve(replace(config, numbers=replace(config.numbers, thresholds=_thresholds(config, defaults))))


def _thresholds(config: MultiwozConfig, defaults: MultiwozConfig) -> dict[str, float]:
    """Those given, and the preset's for the other constraints of the step."""
    kept = {name: value for name, value in defaults.numbers.thresholds.items() if name in config.step.constraints}
    return kept | dict(config.numbers.thresholds)


def main(arguments: list[str] | None = None) -> int:
    """Run the experiment; returns the exit status: 0 done, 2 a mistake in flags or data, 128 + signal when stopped."""
    # Before transformers and datasets are imported: no hub is asked for anything here.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        config = parse(sys.argv[1:] if arguments is None else arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from morejax.experiments.multiwoz.pipeline import Pipeline
    from morejax.training.interrupt import Interrupted, StopRequest

    began = time.monotonic()
    try:
        with StopRequest() as stop:
            pipeline = Pipeline(config, stop)
            banner(pipeline)
            report = pipeline.execute()
    except Interrupted as stopped:
        print(f"{stopped}; continue with --resume", file=sys.stderr)
        return 128 + stopped.number
    except KeyboardInterrupt:
        print("stopped at once; --resume continues from the last checkpoint", file=sys.stderr)
        return 130
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("MOREJAX_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 3 if isinstance(error, FloatingPointError) else 2
    print(f"done in {(time.monotonic() - began) / 60:.1f} minutes: {report}", file=sys.stderr)
    return 0


def banner(pipeline) -> None:
    """Say what runs on what."""
    import jax

    config, corpus = pipeline.config, pipeline.corpus
    sizes = ", ".join(f"{name} {len(dialogues)}" for name, dialogues in sorted(corpus.splits.items()))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(pipeline.language_model[1]))
    device = jax.devices()[0]
    lines = [
        f"morejax multiwoz: preset {config.preset}, method {config.method}, track {config.track}, seed {config.seed}",
        f"corpus {corpus.name} ({sizes}); fit {pipeline.fit}, select {pipeline.select}, ppo {pipeline._ppo_split}",
        f"policy {parameters / 1e6:.2f}M parameters on {config.devices or jax.device_count()} x {device.device_kind}",
        f"out {pipeline.dir}",
    ]
    if corpus.skipped:
        lines.append("; ".join(f"{what}: {count}" for what, count in corpus.skipped.items()))
    print("\n".join(lines), file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
