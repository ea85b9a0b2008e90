"""`python -m morejax.experiments.multiwoz.branch RUN OUT`: a run that shares another's stages before PPO."""

from __future__ import annotations

from morejax.experiments.shared.branch import command


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return command("multiwoz", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
