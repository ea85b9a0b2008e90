"""How an experiment's command ends: a line that says why, and an exit status."""

from __future__ import annotations

import logging
import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from morejax.host_memory import keep_freed_memory

Config = TypeVar("Config")


def print_made(make: Callable[[], Iterable[Path]]) -> int:
    """Make files or folders and print their paths; returns the exit status: 2 for a mistake in what was named."""
    try:
        for path in make():
            print(path)
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run_command(parse: Callable[[], Config], run: Callable[[Config], Path]) -> int:
    """Parse, run, and say how it ended.

    Args:
        parse: the command line to a configuration.
        run: does the work, returns what to look at. Joins the other processes, where there are several, before it
            touches a device.

    Returns:
        0 done, 2 a mistake in flags, folders or data, 3 a number that is not finite, 4 another process failed,
        128 + signal when stopped.
    """
    # Before transformers and datasets are imported: no hub is asked for anything here.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        # Before the first array: see there.
        keep_freed_memory()
        config = parse()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    import jax

    from morejax import hosts
    from morejax.training.interrupt import Interrupted

    began = time.monotonic()
    try:
        report = run(config)
    except Interrupted as stopped:
        hosts.say(f"{stopped}; continue with --resume")
        return 128 + stopped.number
    except KeyboardInterrupt:
        print("stopped at once; --resume continues from the last checkpoint", file=sys.stderr)
        return 130
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("MOREJAX_DEBUG"):
            raise
        print(f"{_who()}error: {error}", file=sys.stderr)
        return 3 if isinstance(error, FloatingPointError) else 2
    except hosts.HostError as error:
        print(f"{_who()}error in {error}", file=sys.stderr)
        return 4
    except jax.errors.JaxRuntimeError as error:
        if not jax.distributed.is_initialized() or os.environ.get("MOREJAX_DEBUG"):
            raise
        reason = textwrap.shorten(str(error), 300)
        print(
            f"{_who()}error: no answer from another process; start all again with --resume ({reason})", file=sys.stderr
        )
        return 4
    hosts.say(f"done in {(time.monotonic() - began) / 60:.1f} minutes: {report}")
    return 0


def _who() -> str:
    """Names this process in what it says, where there are several."""
    import jax

    return f"process {jax.process_index()}: " if jax.distributed.is_initialized() else ""
