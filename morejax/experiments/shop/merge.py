"""`python -m morejax.experiments.shop.merge OUT RUN RUN ...`: a run with the mean of several runs' policies."""

from __future__ import annotations

from morejax.experiments.shared.merge import command


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return command("shop", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
