"""FLOPs of a compiled program, loops counted as often as they run.

XLA's own cost analysis counts the body of a loop once: a step that scans over four minibatches would seem four times
cheaper than it is, and a gradient norm computed in a loop would seem free. Here the optimised HLO text is read instead,
and every computation counts as often as it is called.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_SHAPE = re.compile(r"\b(?:f\d+\w*|bf16|s\d+|u\d+|pred|c\d+)\[([\d,]*)\]")
_OPCODE = re.compile(r"(?:^|\s)([a-z][a-z0-9\-]*)\(")
_CALLED = re.compile(r"(?:calls|to_apply|body)=%?([\w.\-]+)")
_TRUE_FALSE = re.compile(r"(?:true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
_CONTRACTED_CUBLAS = re.compile(r'"lhs_contracting_dimensions":\[([^\]]*)\]')

_ELEMENTWISE = frozenset(
    {
        *("add", "subtract", "multiply", "divide", "maximum", "minimum", "negate", "abs", "power", "sqrt", "rsqrt"),
        *("exponential", "exponential-minus-one", "log", "log-plus-one", "logistic", "tanh", "sine", "cosine", "erf"),
        *("floor", "ceil", "sign"),
    }
)


@dataclass
class Computation:
    """FLOPs of its own, and the computations that it calls with how often it does."""

    flops: float = 0.0
    calls: list[tuple[str, float]] = field(default_factory=list)
    choices: list[list[str]] = field(default_factory=list)
    """Branches, of which one runs."""


def count_flops(hlo: str, unknown_trips: float = 1.0, branch: Callable[[list[float]], float] = max) -> float:
    """FLOPs of one run: 2 m n k for a matrix product, one for every element of elementwise arithmetic and reductions.

    Args:
      hlo: text of the optimised program, `compiled.as_text()`.
      unknown_trips: how often a loop runs whose number of turns XLA does not know (a sampler's `while_loop`).
      branch: which of a conditional's branches counts, `max` or `min`.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations, entry = _parse(hlo, unknown_trips)
    known: dict[str, float] = {}

    def total(name: str) -> float:
        if name not in known:
            part = computations[name]
            called = sum(times * total(callee) for callee, times in part.calls)
            known[name] = part.flops + called + sum(branch([total(one) for one in choice]) for choice in part.choices)
        return known[name]

    return total(entry)


def _parse(hlo: str, unknown_trips: float) -> tuple[dict[str, Computation], str]:
    computations: dict[str, Computation] = {}
    entry, current, shapes = None, Computation(), {}
    for line in hlo.splitlines():
        header = _HEADER.match(line)
        if header:
            name = header.group(2)
            current, shapes = computations.setdefault(name, Computation()), {}
            entry = name if header.group(1) else entry
            continue
        found = _INSTRUCTION.match(line)
        if found:
            _add(current, found.group(1), found.group(2), shapes, unknown_trips)
    if entry is None:
        raise ValueError("the HLO text has no ENTRY computation")
    return computations, entry


def _add(part: Computation, name: str, text: str, shapes: dict[str, str], unknown_trips: float) -> None:
    """Count one instruction; its shape is kept for those that read it."""
    opcode = _OPCODE.search(text)
    if opcode is None:
        return
    kind, result = opcode.group(1), text[: opcode.start()]
    shapes[name] = result
    operands = re.findall(r"%([\w.\-]+)", text[opcode.end() :].split("), ")[0])
    if kind == "dot" or (kind == "custom-call" and "__cublas" in text):
        left = _dimensions(shapes[operands[0]])
        part.flops += 2.0 * _elements(result) * math.prod(left[d] for d in _contracted(text))
    elif kind in _ELEMENTWISE:
        part.flops += _elements(result)
    elif kind in ("reduce", "reduce-window") and operands:
        part.flops += _elements(shapes[operands[0]])
        return  # the reducer is one operation an element, counted here
    trips = 1.0
    if kind == "while":
        found = _TRIPS.search(text)
        trips = float(found.group(1)) if found else unknown_trips
    if kind == "conditional":
        part.choices.append(_branches(text))
    elif kind not in ("sort", "scatter", "map", "select-and-scatter", "all-reduce", "reduce-scatter"):
        part.calls += [(callee, trips) for callee in _CALLED.findall(text)]


def _contracted(text: str) -> list[int]:
    """Dimensions of the left operand that a product sums over, in HLO's own notation or in cuBLAS's."""
    found = _CONTRACTED.search(text) or _CONTRACTED_CUBLAS.search(text)
    return [int(d) for d in re.findall(r"\d+", found.group(1))] if found else []


def _branches(text: str) -> list[str]:
    listed = _BRANCHES.search(text)
    return re.findall(r"[\w.\-]+", listed.group(1)) if listed else _TRUE_FALSE.findall(text)


def _dimensions(shape: str) -> list[int]:
    found = _SHAPE.search(shape)
    return [int(d) for d in found.group(1).split(",") if d] if found else []


def _elements(shape: str) -> int:
    return math.prod(_dimensions(shape))
