"""`python -m morejax.experiments.shop`: train a service agent and A/B-test it; no arguments run the demo."""

from __future__ import annotations

import sys
from pathlib import Path

import tyro

from morejax.experiments.shared.command import run_command
from morejax.experiments.shared.presets import check_task_decides, preset_name
from morejax.experiments.shop.config import PRESETS, ShopConfig, preset, resolve

# Lines of a description that begin with a letter are joined by tyro to the one before; indented ones stay.
_EXAMPLES = """
Examples:
  # the demo: generate, train, score, A/B test
  python -m morejax.experiments.shop
  # the real one, in hours on 2 cores
  python -m morejax.experiments.shop --preset cpu --out runs/shop/more
  # a baseline from the same supervised model, scaffold and reward head
  python -m morejax.experiments.shop.branch runs/shop/more runs/shop/mixed
  python -m morejax.experiments.shop --preset cpu --out runs/shop/mixed --method mixed --resume
  # finished runs against each other
  python -m morejax.experiments.shop ab --arms control=runs/shop/more:supervised runs/shop/mixed runs/shop/more

The first command with one of these
  --resume                                continues after a stop
  --seed 1                                another initialisation; the dialogues stay (--corpus.seed)
  --stages generate supervised            only some stages
  --numbers.thresholds eligibility 0.95   a threshold of one's own, the others stay relative to the scaffold
  --step.objectives overlap concision     other objectives
"""


def parse(arguments: list[str]) -> ShopConfig:
    """Configuration from the command line; --preset is read first, it gives the other flags' defaults.

    Raises:
        SystemExit: bad flags (status 2), or --help.
        ValueError: flags that do not go together.
    """
    name = preset_name(arguments, PRESETS)
    config = tyro.cli(
        ShopConfig,
        args=arguments,
        default=preset(name),
        prog="python -m morejax.experiments.shop",
        description=f"{ShopConfig.__doc__}\n{_EXAMPLES}",
        config=(tyro.conf.CascadeSubcommandArgs,),
    )
    check_task_decides(config, preset(name))
    return resolve(config)


def main(arguments: list[str] | None = None) -> int:
    """Run the experiment, or its subcommand `ab`; returns the exit status (see `run_command`)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["ab"]:
        from morejax.experiments.shop.ab import main as ab

        return ab(arguments[1:])
    return run_command(lambda: parse(arguments), _run)


def _run(config: ShopConfig) -> Path:
    from morejax import hosts

    if hosts.launched_together():
        raise ValueError(
            "the environment speaks of several processes, and the shop runs in one: start it once, on one host "
            "(--devices and --mesh take all of its devices)"
        )
    from morejax.experiments.shop.parts import ShopParts
    from morejax.experiments.shop.pipeline import run_pipeline
    from morejax.training.interrupt import StopRequest

    with StopRequest() as stop:
        parts = ShopParts(config, stop)
        _banner(parts)
        return run_pipeline(parts)


def _banner(parts) -> None:
    """Say what runs on what."""
    import jax

    config = parts.config
    sizes = ", ".join(f"{name} {count}" for name, count in parts.corpus.sizes.items())
    parameters = sum(leaf.size for leaf in jax.tree.leaves(parts.language_model[1]))
    print(
        f"morejax shop: preset {config.preset}, method {config.method}, seed {config.seed}\n"
        f"dialogues {sizes}\n"
        f"policy {parameters / 1e6:.2f}M parameters on {parts.placement.devices} x {jax.devices()[0].device_kind}\n"
        f"out {parts.dir}",
        file=sys.stderr,
    )


if __name__ == "__main__":
    raise SystemExit(main())
