"""The models of a run that can be scored or played with."""

from __future__ import annotations

from dataclasses import dataclass

from morejax.experiments.shared.parts import RunParts
from morejax.models.split import Params


@dataclass(frozen=True)
class System:
    """A model that answers."""

    params: Params
    reasoned: bool = False
    """Does it write its reasoning before it answers?"""


def systems(parts: RunParts) -> dict[str, System]:
    """The models that the run has; the one it is about stands last."""
    found = {"supervised": System(parts.load("supervised"))}
    if parts.run.stage_record("scaffold") is not None:
        found["scaffold"] = System(parts.load("scaffold"), reasoned=True)
    if parts.config.method == "supervised":
        found["supervised"] = found.pop("supervised")
    elif parts.run.stage_record("ppo") is not None:
        found["ppo"] = System(parts.load_actor(), reasoned=parts.aloud)
    return found
