"""Freed memory stays with the process, or not, as asked."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from morejax.host_memory import SWITCH, keep_freed_memory, release_freed_memory

PROGRAM = """
from morejax.host_memory import keep_freed_memory
kept = keep_freed_memory()
import numpy as np
array = np.ones((64, 2**20), np.uint8)
del array
pages = int(open("/proc/self/statm").read().split()[1])
again = np.ones((64, 2**20), np.uint8)
print(kept, int(open("/proc/self/statm").read().split()[1]) - pages)
"""

HOLE = """
from morejax.host_memory import keep_freed_memory, release_freed_memory
keep_freed_memory()
import numpy as np
pages = lambda: int(open("/proc/self/statm").read().split()[1])
array = np.ones((64, 2**20), np.uint8)
behind = np.ones(2**16, np.uint8)  # the hole is not at the end of the heap, which malloc trims by itself
full = pages()
del array
print(full - pages())
print(release_freed_memory(), full - pages())
"""


def grown(switch: str, **variables: str) -> tuple[str, float]:
    """What `keep_freed_memory` says, and MiB that the process grows by in allocating again what it has freed."""
    environment = {**os.environ, **variables, SWITCH: switch}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    kept, pages = done.stdout.split()
    return kept, int(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_kept_only_where_asked() -> None:
    kept, growth = grown("keep")
    assert kept == "True"
    assert growth < 1
    kept, growth = grown("", JAX_PLATFORMS="cpu")
    assert kept == "True"
    assert growth < 1
    kept, growth = grown("system")
    assert kept == "False"
    assert growth > 60


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc_trim is glibc's")
def test_what_is_kept_can_be_handed_back() -> None:
    environment = {**os.environ, SWITCH: "keep"}
    done = subprocess.run([sys.executable, "-c", HOLE], env=environment, capture_output=True, text=True, check=True)
    freed, released, after = done.stdout.split()
    mebibyte = 2**20 / os.sysconf("SC_PAGE_SIZE")
    assert int(freed) < mebibyte
    assert released == "True"
    assert int(after) > 60 * mebibyte


def test_nothing_is_handed_back_without_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert not release_freed_memory()


def test_another_value_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "jemalloc")
    with pytest.raises(ValueError, match="MOREJAX_MALLOC must be keep or system, not 'jemalloc'"):
        keep_freed_memory()


def test_keep_without_glibc_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setenv(SWITCH, "keep")
    with pytest.raises(ValueError, match="needs glibc"):
        keep_freed_memory()
    monkeypatch.delenv(SWITCH)
    monkeypatch.setattr("morejax.host_memory._ACCELERATORS", ())
    assert not keep_freed_memory()


def test_accelerators_leave_the_host_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr("morejax.host_memory._ACCELERATORS", (f"{tmp_path}*",))
    assert not keep_freed_memory()
