"""How the C library keeps the memory that XLA's CPU programs allocate and free at every step.

XLA on CPU takes its buffers from malloc. By default glibc maps every large one from the kernel and gives it back when
it is freed, so that each step pays for clearing the same pages again: a third of the time of small models. Settings of
`mallopt(3)` keep the pages in the process instead. They say where memory comes from and change no result.
"""

from __future__ import annotations

import ctypes
import os
import sys
from glob import glob

__all__ = ["keep_freed_memory", "release_freed_memory"]

SWITCH = "MOREJAX_MALLOC"
"""Environment variable: `keep` (the default where there is no accelerator) or `system`, which changes nothing."""

# Parameters of mallopt, from glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_LARGEST = 2**31 - 1
_PAD = 256 * 2**20
_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/accel[0-9]*", "/dev/vfio/[0-9]*", "/dev/kfd")


def keep_freed_memory() -> bool:
    """Let malloc keep what is freed, in one arena, where the work is done on CPU.

    Call it before JAX touches a device: threads that exist keep the arenas they have. The process then holds more than
    it uses: buffers of many sizes leave holes between each other. `release_freed_memory` hands them back.

    Returns:
      True if it is set; False with `MOREJAX_MALLOC=system`, and, where nothing is asked for, with another C library
      than glibc or an accelerator (unless `JAX_PLATFORMS` is `cpu`).

    Raises:
      ValueError: `MOREJAX_MALLOC` is neither `keep` nor `system`, or `keep` where there is no glibc.
    """
    wanted = os.environ.get(SWITCH, "")
    if wanted not in ("", "keep", "system"):
        raise ValueError(f"{SWITCH} must be keep or system, not {wanted!r}")
    if wanted == "system":
        return False
    if not wanted and os.environ.get("JAX_PLATFORMS") != "cpu" and any(map(glob, _ACCELERATORS)):
        return False
    library = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    if library is None or not hasattr(library, "gnu_get_libc_version"):
        if wanted:
            raise ValueError(f"{SWITCH}=keep needs glibc, which this is not: leave it out, or say system")
        return False
    # One arena: the others cannot grow beyond 64 MiB and would map large buffers all the same.
    settings = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, _LARGEST), (_TOP_PAD, _PAD))
    return all(library.mallopt(name, value) == 1 for name, value in settings)


def release_freed_memory() -> bool:
    """Hand what malloc keeps back to the system, as between two stages of a run: the next allocates other sizes.

    Returns:
      True if anything was handed back; False, too, where the C library is not glibc.
    """
    library = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    return library is not None and hasattr(library, "malloc_trim") and library.malloc_trim(0) == 1
