"""`python -m morejax.experiments.multiwoz`: train and score a dialogue policy; no arguments run the demo."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from morejax.experiments.multiwoz.config import PRESETS, MultiwozConfig, preset, resolve
from morejax.experiments.shared.command import run_command
from morejax.experiments.shared.presets import check_task_decides, flag_value, preset_name

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
  --numbers.kl-coef 0.2                   another number of the step
  --numbers.thresholds success 0.7        another threshold, the others stay
"""


def parse(arguments: list[str]) -> MultiwozConfig:
    """Configuration from the command line; --preset and --track are read first, they give the other flags' defaults.

    Raises:
        SystemExit: bad flags (status 2), or --help.
        ValueError: flags that do not go together.
    """
    name, track = preset_name(arguments, PRESETS), flag_value(arguments, "--track", "policy")
    defaults = preset(name, track)
    config = tyro.cli(
        MultiwozConfig,
        args=arguments,
        # A mapping that is not empty would be offered name by name, and no other name taken.
        default=replace(defaults, numbers=replace(defaults.numbers, thresholds={})),
        prog="python -m morejax.experiments.multiwoz",
        description=f"{MultiwozConfig.__doc__}\n{_EXAMPLES}",
        config=(tyro.conf.CascadeSubcommandArgs,),
    )
    check_task_decides(config, defaults)
    return resolve(replace(config, numbers=replace(config.numbers, thresholds=_thresholds(config, defaults))))


def _thresholds(config: MultiwozConfig, defaults: MultiwozConfig) -> dict[str, float]:
    """Those given, and the preset's for the other constraints of the step."""
    kept = {name: value for name, value in defaults.numbers.thresholds.items() if name in config.step.constraints}
    return kept | dict(config.numbers.thresholds)


def main(arguments: list[str] | None = None) -> int:
    """Run the experiment; returns the exit status (see `run_command`)."""
    return run_command(lambda: parse(sys.argv[1:] if arguments is None else arguments), _run)


def _run(config: MultiwozConfig) -> Path:
    from morejax import hosts

    # Before any device is touched.
    hosts.initialise(config.coordinator, config.processes, config.process, heartbeat=config.heartbeat)
    from morejax.experiments.multiwoz.parts import Parts
    from morejax.experiments.multiwoz.pipeline import run_pipeline
    from morejax.training.interrupt import StopRequest

    with StopRequest() as stop:
        parts = Parts(config, stop)
        banner(parts)
        return run_pipeline(parts)


def banner(parts: Parts) -> None:
    """Say what runs on what; asked of all processes, said by the main one."""
    import jax

    from morejax import hosts

    config, corpus = parts.config, parts.corpus
    sizes = ", ".join(f"{name} {len(dialogues)}" for name, dialogues in sorted(corpus.splits.items()))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(parts.language_model[1]))
    device = jax.devices()[0]
    lines = [
        f"morejax multiwoz: preset {config.preset}, method {config.method}, track {config.track}, seed {config.seed}",
        f"corpus {corpus.name} ({sizes}); fit {parts.fit}, select {parts.select}, ppo {parts.ppo_split}",
        f"policy {parameters / 1e6:.2f}M parameters on {_layout(parts)} x {device.device_kind}",
        f"out {parts.dir}",
    ]
    if corpus.skipped:
        lines.append("; ".join(f"{what}: {count}" for what, count in corpus.skipped.items()))
    hosts.say("\n".join(lines))


def _layout(parts: Parts) -> str:
    """Devices, the axes they form where there are several, and the processes they belong to."""
    import jax

    mesh, processes = parts.placement.mesh, jax.process_count()
    axes = {} if mesh is None else {axis: size for axis, size in mesh.shape.items() if size > 1}
    named = ",".join(f"{axis}={size}" for axis, size in axes.items())
    spread = f" of {processes} processes" if processes > 1 else ""
    return f"{parts.placement.devices}{f' ({named})' if len(axes) > 1 else ''}{spread}"


if __name__ == "__main__":
    from morejax import hosts

    hosts.finish(main)
