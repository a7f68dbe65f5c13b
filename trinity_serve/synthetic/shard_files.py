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

from cluster.types import ComputeDtype

_HEADER_NAMES: dict[ComputeDtype, str] = {"float32": "F32", "bfloat16": "BF16"}
_ITEM_BYTES: dict[ComputeDtype, int] = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: ComputeDtype

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]


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
    pieces: Callable[[TensorSpec], Iterator[Tensor]],
    written: Callable[[int], None],
) -> None:
    """Write one file. `pieces` gives a tensor's flat parts; `written` hears bytes as they go."""
    # float32 first: an odd number of bfloat16 values before it would leave it unaligned.
    ordered = sorted(tensors, key=lambda tensor: tensor.dtype != "float32")
    with path.open("wb") as file:
        file.write(_header(ordered))
        for tensor in ordered:
            size = sum(_write_piece(file, piece, written) for piece in pieces(tensor))
            assert size == tensor.nbytes, (tensor, size)


def _write_piece(file: BinaryIO, piece: Tensor, written: Callable[[int], None]) -> int:
    file.write(piece.contiguous().view(torch.uint8).numpy().data)
    written(piece.nbytes)
    return piece.nbytes


def _header(tensors: Sequence[TensorSpec]) -> bytes:
    """Return length (8 bytes, little-endian) and JSON, padded so that data begins aligned."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        entries[tensor.name] = {
            "dtype": _HEADER_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
