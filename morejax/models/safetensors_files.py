"""safetensors files, read in slices by memory map and written tensor by tensor: no host holds a whole model.

A file is 8 bytes of header length, a JSON header `{name: {dtype, shape, data_offsets}}`, and the tensors' bytes
(https://github.com/huggingface/safetensors). Types go by `ml_dtypes`, so bfloat16 needs no torch.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_TYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies."""

    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int
    """Of its first byte in the file."""

    def read(self) -> np.ndarray:
        """The tensor as a read-only memory map: only what is indexed is read from disk."""
        if math.prod(self.shape) == 0:
            return np.zeros(self.shape, self.dtype)
        flat = np.memmap(self.file, np.uint8, "r", self.offset, (math.prod(self.shape) * self.dtype.itemsize,))
        return flat.view(self.dtype).reshape(self.shape)


def read_header(file: Path) -> dict[str, Stored]:
    """The tensors of one file.

    Raises:
      ValueError: it is no safetensors file, ends too early, or has a tensor of an unknown type.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        first = stream.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else size
        if 8 + length > size:
            raise ValueError(f"{file}: not a safetensors file, or cut short ({size} bytes)")
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise ValueError(f"{file}: not a safetensors file (its header is no JSON)") from error
    header.pop("__metadata__", None)
    return {name: _stored(file, name, entry, 8 + length, size) for name, entry in header.items()}


def _stored(file: Path, name: str, entry: dict, begin: int, size: int) -> Stored:
    if entry["dtype"] not in _TYPES:
        raise ValueError(f"{file}: tensor {name} has type {entry['dtype']}, expected one of {', '.join(_TYPES)}")
    dtype, shape, (start, stop) = _TYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
    if stop - start != math.prod(shape) * dtype.itemsize or begin + stop > size:
        raise ValueError(f"{file}: tensor {name} {list(shape)} does not lie within the file's {size} bytes")
    return Stored(file, dtype, shape, begin + start)


def read_folder(folder: Path) -> dict[str, Stored]:
    """The tensors of a model's folder, in one file or in shards with an index.

    Raises:
      FileNotFoundError: no weights, or a shard is missing.
      ValueError: the index names a tensor that its shard does not hold.
    """
    index = folder / INDEX
    if not index.is_file():
        if not (folder / SINGLE).is_file():
            others = ", ".join(sorted(path.name for path in folder.glob("*.bin"))) or "no other weights either"
            raise FileNotFoundError(f"{folder}: neither {SINGLE} nor {INDEX} (found {others})")
        return read_header(folder / SINGLE)
    placed = json.loads(index.read_text())["weight_map"]
    shards = {}
    for name in sorted(set(placed.values())):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: {INDEX} names this shard, and it is not there")
        shards[name] = read_header(folder / name)
    absent = [f"{tensor} ({shard})" for tensor, shard in placed.items() if tensor not in shards[shard]]
    if absent:
        raise ValueError(f"{index} names tensors that are not in their shard: {', '.join(absent[:5])}")
    return {tensor: shards[shard][tensor] for tensor, shard in placed.items()}


@dataclass(frozen=True)
class Tensor:
    """A tensor to be written: its values are made when their turn has come."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    values: Callable[[], np.ndarray]

    @property
    def bytes(self) -> int:
        """Size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_file(file: Path, tensors: Iterable[Tensor]) -> None:
    """Write one file; one tensor at a time is in memory."""
    tensors = list(tensors)
    header: dict = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    end = 0
    for tensor in tensors:
        span = [end, end + tensor.bytes]
        header[tensor.name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": span}
        end = span[1]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    part = file.with_name(file.name + ".part")
    with part.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            values = np.ascontiguousarray(tensor.values(), tensor.dtype)
            if values.shape != tensor.shape:
                raise ValueError(f"{tensor.name}: values of shape {values.shape}, announced as {tensor.shape}")
            stream.write(values.reshape(-1).view(np.uint8).data)
    part.replace(file)


def write_folder(folder: Path, tensors: Iterable[Tensor], max_shard_bytes: int) -> list[Path]:
    """Write a model's tensors to one file, or to shards of at most so many bytes (or one tensor) with an index."""
    shards = list(_shards(tensors, max_shard_bytes))
    if len(shards) == 1:
        write_file(folder / SINGLE, shards[0])
        return [folder / SINGLE]
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        write_file(folder / name, shard)
    placed = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    total = sum(tensor.bytes for shard in shards for tensor in shard)
    index = {"metadata": {"total_size": total}, "weight_map": placed}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")
    return [folder / name for name in names]


def _shards(tensors: Iterable[Tensor], max_shard_bytes: int) -> Iterator[list[Tensor]]:
    shard: list[Tensor] = []
    for tensor in tensors:
        if shard and sum(one.bytes for one in shard) + tensor.bytes > max_shard_bytes:
            yield shard
            shard = []
        shard.append(tensor)
    yield shard
