"""Stages in order; each reads what the ones before it left in the run's folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from morejax import hosts
from morejax.experiments.shared.parts import RunParts
from morejax.host_memory import release_freed_memory

Stage = Callable[[Any], dict[str, Any]]
"""Does its work in the folder of a run's parts; what it returns is recorded in stages.json once it is done."""


def run_stages(
    parts: RunParts, stages: Mapping[str, Stage], report: Callable[[Path], Path], again: tuple[str, ...] = ("evaluate",)
) -> Path:
    """Run the stages that are asked for and not done.

    Args:
        parts: of the run.
        stages: by name.
        report: results.json to the page made from it; what the last stages took is in the run by then.
        again: stages that are made anew whenever they are asked for.

    Returns:
        The report's path, or the folder of a run that has no results yet.
    """
    for name in parts.config.stages:
        parts.stop.raise_if_set()
        if name not in again and parts.run.stage_record(name) is not None:
            hosts.say(f"{name}: done before, skipped")
            continue
        with parts.run.stage(name) as record:
            record |= stages[name](parts)
        release_freed_memory()

    def page() -> str:
        results = parts.dir / "results.json"
        return str(report(results) if results.is_file() else parts.dir)

    return Path(hosts.on_main(page))
