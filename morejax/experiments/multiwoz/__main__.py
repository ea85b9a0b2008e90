"""`python -m morejax.experiments.multiwoz`: train and score a dialogue policy; no arguments run the demo."""

from __future__ import annotations

import logging
import os
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import tyro

from morejax.experiments.multiwoz.config import PRESETS, MultiwozConfig, preset, resolve

if TYPE_CHECKING:
    from morejax.experiments.multiwoz.parts import Parts

# Lines of a description that begin with a letter are joined by tyro to the one before; indented ones stay.
_EXAMPLES = """
Examples:
  # the demo, which needs no data
  python -m morejax.experiments.multiwoz
  # MultiWOZ 2.2 on a CPU, or on a GPU with --preset gpu
  python -m morejax.experiments.multiwoz --preset cpu --data-dir DATA --out runs/mwz

The same command with one of these
  --resume                                continues after a stop
  --split test                            scores the trained policy on the test dialogues
  --method mixed --mixed-weight 0.5       a baseline
  --stages supervised evaluate            only some stages
  --numbers.kl-coef 0.1                   another number of the step
  --numbers.thresholds success 0.85       another threshold, the others stay
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
        description=f"{MultiwozConfig.__doc__}\n{_EXAMPLES}",
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
    from morejax.experiments.multiwoz.parts import Parts
    from morejax.experiments.multiwoz.pipeline import run_stages
    from morejax.training.interrupt import Interrupted, StopRequest

    began = time.monotonic()
    try:
        with StopRequest() as stop:
            parts = Parts(config, stop)
            banner(parts)
            report = run_stages(parts)
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


def banner(parts: Parts) -> None:
    """Say what runs on what."""
    import jax

    config, corpus = parts.config, parts.corpus
    sizes = ", ".join(f"{name} {len(dialogues)}" for name, dialogues in sorted(corpus.splits.items()))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(parts.language_model[1]))
    device = jax.devices()[0]
    lines = [
        f"morejax multiwoz: preset {config.preset}, method {config.method}, track {config.track}, seed {config.seed}",
        f"corpus {corpus.name} ({sizes}); fit {parts.fit}, select {parts.select}, ppo {parts.ppo_split}",
        f"policy {parameters / 1e6:.2f}M parameters on {config.devices or jax.device_count()} x {device.device_kind}",
        f"out {parts.dir}",
    ]
    if corpus.skipped:
        lines.append("; ".join(f"{what}: {count}" for what, count in corpus.skipped.items()))
    print("\n".join(lines), file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
