"""Writes safetensors files piece by piece: the header first, from names and shapes alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from experts.quantised.scheme import ITEM_BYTES


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor to be written. `dtype` is the file format's name of it, e.g. ``BF16``."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


Pieces = Callable[[TensorSpec], Iterator[Tensor]]
"""Gives a tensor's flat parts in row-major order."""


def plan_files(tensors: Iterable[TensorSpec], max_file_bytes: int) -> list[list[TensorSpec]]:
    """Fill files in order; one of at least a tensor each, at most `max_file_bytes` otherwise."""
    files: list[list[TensorSpec]] = []
    room = 0
    for tensor in tensors:
        if not files or tensor.nbytes > room:
            files.append([])
            room = max_file_bytes
        files[-1].append(tensor)
        room -= tensor.nbytes
    return files


def file_name(index: int, count: int) -> str:
    """Return the Hub's name of file `index` (from 0) of `count`."""
    return f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def write_file(
    path: Path,
    tensors: Sequence[TensorSpec],
    pieces: Pieces,
    written: Callable[[int], None],
) -> None:
    """Write one file; `written` hears bytes as they go."""
    ordered = _aligned(tensors)
    with path.open("wb") as file:
        file.write(_header(ordered))
        for tensor in ordered:
            size = sum(_write_piece(file, piece, written) for piece in pieces(tensor))
            assert size == tensor.nbytes, (tensor, size)


def write_outline(path: Path, tensors: Sequence[TensorSpec]) -> None:
    """Write a file whose data is a hole: it has its length, reads as zeros, and takes no room."""
    ordered = _aligned(tensors)
    with path.open("wb") as file:
        header = _header(ordered)
        file.write(header)
        file.truncate(len(header) + sum(tensor.nbytes for tensor in ordered))


def _aligned(tensors: Sequence[TensorSpec]) -> list[TensorSpec]:
    """Put wide items first: an odd number of narrow ones before would leave them unaligned."""
    return sorted(tensors, key=lambda tensor: -ITEM_BYTES[tensor.dtype])


def _write_piece(file: BinaryIO, piece: Tensor, written: Callable[[int], None]) -> int:
    file.write(piece.contiguous().view(-1).view(torch.uint8).numpy().data)
    written(piece.nbytes)
    return piece.nbytes


def _header(tensors: Sequence[TensorSpec]) -> bytes:
    """Return length (8 bytes, little-endian) and JSON, padded so that data begins aligned."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
