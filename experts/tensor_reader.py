"""Reads single tensors of one safetensors file into memory of their own.

A file map would be shorter, but its tensors stand at the file's own alignment, and torch's float32
matrix products give other bits for another alignment: the same weights saved anew would then
answer differently. It also ends the process with SIGBUS when a file shrinks while it is read.
"""

from __future__ import annotations

import json
import math
import os
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from experts.quantised.scheme import ITEM_BYTES

_TORCH_DTYPES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I32": torch.int32,
    "I64": torch.int64,
    "U8": torch.uint8,
}

PIECE_BYTES = 4 << 20
"""What one thread reads at a time: long enough that calls cost nothing, short enough that an expert
matrix of tens of megabytes keeps several threads busy."""


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """What the file says of a tensor. `dtype` is the format's name, e.g. ``BF16``."""

    shape: tuple[int, ...]
    dtype: str
    offset: int
    """Of the first data byte, from the start of the file."""

    @property
    def nbytes(self) -> int:
        """Bytes of its data; `dtype` is one that is read here."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class FileRange:
    """Bytes of a weight file, `offset` from its start."""

    file: str
    offset: int
    nbytes: int


class TensorReader:
    """Headers of one file whose structure the safetensors library has already accepted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            entries = json.loads(file.read(header_bytes))
        self.headers = {
            name: TensorHeader(
                tuple(entry["shape"]), entry["dtype"], 8 + header_bytes + entry["data_offsets"][0]
            )
            for name, entry in entries.items()
            if name != "__metadata__"
        }

    def read(
        self, name: str, into: Tensor | None = None, threads: Executor | None = None
    ) -> Tensor:
        """Return the tensor, `into` or freshly allocated. Blocks on the disk.

        Args:
            name: a tensor of one of the dtypes that checkpoints have.
            into: contiguous, of the tensor's shape and dtype; may be page-locked memory.
            threads: read large tensors piece by piece side by side, on these.

        Raises:
            OSError: the file cannot be read, or has become shorter than it was when opened.
        """
        header = self.headers[name]
        if into is None:
            into = torch.empty(header.shape, dtype=_TORCH_DTYPES[header.dtype])
        buffer = into.view(-1).view(torch.uint8).numpy().data
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _read_range(descriptor, buffer, header.offset, threads)
        finally:
            os.close(descriptor)
        return into


def _read_range(descriptor: int, buffer: memoryview, offset: int, threads: Executor | None) -> None:
    if threads is None or len(buffer) <= PIECE_BYTES:
        _read_piece(descriptor, buffer, offset)
        return
    reads = [
        threads.submit(_read_piece, descriptor, buffer[start : start + PIECE_BYTES], offset + start)
        for start in range(0, len(buffer), PIECE_BYTES)
    ]
    # All of them, before the descriptor is closed and the buffer is anybody's again.
    errors = [error for read in reads if (error := read.exception()) is not None]
    if errors:
        raise errors[0]


def _read_piece(descriptor: int, buffer: memoryview, offset: int) -> None:
    """Fill `buffer` from `offset`, without moving the file's position."""
    done = 0
    while done < len(buffer):
        count = os.preadv(descriptor, [buffer[done:]], offset + done)
        if not count:
            raise OSError(f"the file ends {len(buffer) - done} bytes too early")
        done += count
