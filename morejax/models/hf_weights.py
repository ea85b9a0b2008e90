"""Tensors of a checkpoint to a decoder's parameters and back, slice by slice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from morejax.models.decoder_config import DecoderConfig
from morejax.models.families import Entry, Family
from morejax.models.safetensors_files import Stored, Tensor
from morejax.models.split import Params, flatten

# Standard deviation of a new token's embedding around the mean of those there are, over theirs.
_NEW_ROW_SPREAD = 0.1


def file_shapes(entry: Entry, shape: tuple[int, ...], rows: int, config: DecoderConfig) -> tuple[tuple[int, ...], ...]:
    """Shapes of the tensors that hold one layer of a parameter.

    Args:
      entry: of the family's table.
      shape: of the parameter.
      rows: token ids that the checkpoint knows.
      config: of the decoder.
    """
    own = shape[1:] if entry.stacked else (rows, *shape[1:]) if entry.vocabulary else shape
    shapes = tuple((*own[:-1], columns) for columns in entry.widths(config, own[-1]))
    return tuple(one[::-1] for one in shapes) if entry.transposed else shapes


def used_entries(family: Family, names: Mapping[str, Any]) -> list[Entry]:
    """Lines of the family's table whose parameter this model has."""
    return [entry for entry in family.entries if entry.ours in names]


def match_tensors(
    family: Family, abstract: Params, stored: Mapping[str, Stored], rows: int, config: DecoderConfig
) -> dict[str, list[list[Stored]]]:
    """Find what every parameter is read from: parameter -> layer -> tensors side by side.

    Args:
      family: whose names the checkpoint has.
      abstract: the model's parameters, shapes only.
      stored: what the checkpoint holds.
      rows: token ids that it knows.
      config: of the decoder.

    Raises:
      ValueError: a tensor is missing, too many, or of another shape; names it, what was found, what was expected and
        the file.
    """
    shapes = {name: tuple(leaf.shape) for name, leaf in flatten(abstract).items()}
    prefixed = {_with_prefix(family, name): tensor for name, tensor in stored.items()}
    found: dict[str, list[list[Stored]]] = {}
    problems, seen = [], set()
    for entry in used_entries(family, shapes):
        wanted = file_shapes(entry, shapes[entry.ours], rows, config)
        found[entry.ours] = []
        for layer in range(config.layers if entry.stacked else 1):
            names = entry.names(layer)
            seen |= set(names)
            problems += [
                _problem(name, shape, prefixed.get(name), stored) for name, shape in zip(names, wanted, strict=True)
            ]
            found[entry.ours].append([prefixed[name] for name in names if name in prefixed])
    spare = {"lm_head.weight"} if config.tied else set()
    problems += [
        f"{name} {list(tensor.shape)} in {tensor.file}: expected no such tensor"
        for name, tensor in prefixed.items()
        if name not in seen | spare and not family.is_ignored(name)
    ]
    problems = [problem for problem in problems if problem]
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise ValueError(
            f"{family.model_type} checkpoint does not fit its config.json: {'; '.join(problems[:5])}{more}"
        )
    return found


def _with_prefix(family: Family, name: str) -> str:
    return name if name.startswith((family.prefix, "lm_head.")) else family.prefix + name


def _problem(name: str, shape: tuple[int, ...], found: Stored | None, stored: Mapping[str, Stored]) -> str | None:
    if found is None:
        files = sorted({str(tensor.file) for tensor in stored.values()})
        where = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more files"
        return f"{name}: missing, expected {list(shape)} in {where}"
    if found.shape != shape:
        return f"{name}: found {list(found.shape)}, expected {list(shape)} in {found.file}"
    return None


# Import


def place_parameter(
    entry: Entry,
    layers: Sequence[Sequence[Stored]],
    shape: tuple[int, ...],
    config: DecoderConfig,
    dtype: Any,
    sharding: Sharding,
) -> jax.Array:
    """One parameter on its devices, each of which reads its own slice.

    Args:
      entry: of the family's table.
      layers: its tensors, layer by layer.
      shape: of the parameter.
      config: of the decoder.
      dtype: of the parameter.
      sharding: where it goes.
    """
    new_row = None
    if entry.vocabulary and config.vocab_size > layers[0][0].shape[0]:
        new_row = _new_rows(layers[0][0], config.vocab_size)

    def read(index: Any) -> np.ndarray:
        spans = [range(*one.indices(size)) for one, size in zip(index, shape, strict=True)]
        out = np.zeros([len(span) for span in spans], dtype)
        if not entry.stacked:
            _fill(out, entry, layers[0], spans)
        for place, layer in enumerate(spans[0] if entry.stacked else ()):
            _fill(out[place], entry, layers[layer], spans[1:])
        if new_row is not None:
            new_row(out, spans)
        return out

    return jax.make_array_from_callback(shape, sharding, read)


def _fill(out: np.ndarray, entry: Entry, tensors: Sequence[Stored], spans: Sequence[range]) -> None:
    """Copy the tensors of one layer into a slice of it; rows that they lack stay as they are."""
    begin, columns = 0, spans[-1]
    for tensor in tensors:
        values = tensor.read()
        values = values.T if entry.transposed else values
        width = values.shape[-1]
        first, last = max(columns.start, begin), min(columns.stop, begin + width)
        if first < last:
            inside = slice(first - begin, last - begin)
            target = out[..., first - columns.start : last - columns.start]
            if values.ndim == 1:
                target[...] = values[inside]
            else:
                rows = values[spans[0].start : min(spans[0].stop, values.shape[0]), inside]
                target[: rows.shape[0]] = rows
        begin += width


def _new_rows(table: Stored, count: int) -> Callable[[np.ndarray, Sequence[range]], None]:
    """Rows of tokens that the checkpoint does not know: the mean of the others, and a little noise to tell them apart.

    A row's noise depends on its number alone, so that every device makes the same.
    """
    known = table.shape[0]
    total, squares = np.zeros(table.shape[1]), np.zeros(table.shape[1])
    values = table.read()
    for start in range(0, known, 4096):
        block = np.asarray(values[start : start + 4096], np.float64)
        total, squares = total + block.sum(0), squares + np.square(block).sum(0)
    mean = total / known
    spread = _NEW_ROW_SPREAD * np.sqrt(np.maximum(squares / known - np.square(mean), 0.0))

    def write(out: np.ndarray, spans: Sequence[range]) -> None:
        rows, columns = spans
        for row in range(max(rows.start, known), min(rows.stop, count)):
            noise = np.random.default_rng(row).normal(size=mean.shape)
            out[row - rows.start] = (mean + spread * noise)[columns.start : columns.stop]

    return write


# Export


def tensors_of(family: Family, params: Params, config: DecoderConfig, dtype: np.dtype) -> Iterator[Tensor]:
    """The checkpoint's tensors of a model's parameters, layer by layer; filler of the vocabulary is left out."""
    leaves = flatten(params)
    entries = used_entries(family, leaves)
    for entry in (entry for entry in entries if not entry.stacked):
        yield from _layer_tensors(entry, 0, leaves[entry.ours], config, dtype)
    for layer in range(config.layers):
        for entry in (entry for entry in entries if entry.stacked):
            yield from _layer_tensors(entry, layer, leaves[entry.ours], config, dtype)


def _layer_tensors(
    entry: Entry, layer: int, leaf: jax.Array, config: DecoderConfig, dtype: np.dtype
) -> Iterator[Tensor]:
    shapes = file_shapes(entry, tuple(leaf.shape), config.vocab_size, config)
    begin = 0
    for name, shape in zip(entry.names(layer), shapes, strict=True):
        width = shape[0] if entry.transposed else shape[-1]
        yield Tensor(name, shape, dtype, partial(_values, entry, leaf, layer, slice(begin, begin + width), shape))
        begin += width


def _values(entry: Entry, leaf: jax.Array, layer: int, columns: slice, shape: tuple[int, ...]) -> np.ndarray:
    own = leaf[layer] if entry.stacked else leaf
    values = np.asarray(own[..., columns])
    return values.T if entry.transposed else values[: shape[0]]
