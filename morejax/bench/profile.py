"""Where the time of a compiled step goes, operation by operation, from JAX's own profiler."""

from __future__ import annotations

import gzip
import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

_LINE = re.compile(r"\s+(?:ROOT )?%?(?P<op>[\w.\-]+) = (?P<shape>\S+) ")
_NAME = re.compile(r'op_name="([^"]*)"')
_PRODUCT = re.compile(r"dot_general|conv_general")


def profile(call: Callable[[], Any], hlo: str, repeats: int = 3) -> list[dict[str, Any]]:
    """Trace some calls of a program.

    Args:
      call: runs the program once and returns what to wait for; it has run before.
      hlo: text of the compiled program, which says what each operation came from.
      repeats: calls that are averaged.

    Returns:
      One record an operation, the dearest first: `op`, its name in the program; `ms` a call of the program, on all
      threads together; `runs` a call; `share` of the total; `kind`, product or other; `shape`; `source`, the end of
      the path of functions it was traced from.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(repeats):
                held = call()
            jax.block_until_ready(held)
        events = list(_events(Path(folder)))
    known = dict(_operations(hlo))
    spent, runs = Counter(), Counter()
    for event in events:
        name = event.get("args", {}).get("hlo_op", event["name"])
        if name in known:
            spent[name] += event["dur"] / 1e3 / repeats
            runs[name] += 1
    total = sum(spent.values())
    return [
        {
            "op": name,
            "ms": round(spent[name], 3),
            "runs": runs[name] // repeats,
            "share": round(spent[name] / total, 4),
            "kind": "product" if _PRODUCT.search(known[name][1]) else "other",
            "shape": known[name][0],
            "source": known[name][1][-90:],
        }
        for name, _ in spent.most_common()
    ]


def _events(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.rglob("*.trace.json.gz")):
        with gzip.open(path) as file:
            yield from (event for event in json.load(file)["traceEvents"] if event.get("ph") == "X")


def _operations(hlo: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """Name -> (shape, source) of every operation of a program; loops and calls are left to what they are made of."""
    for line in hlo.splitlines():
        found = _LINE.match(line)
        if found and not re.search(r" (while|call|conditional)\(", line):
            source = _NAME.search(line)
            yield found["op"], (found["shape"].split("{")[0], source[1] if source else "")
