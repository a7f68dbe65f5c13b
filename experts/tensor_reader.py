"""Reads single tensors of one safetensors file into memory of their own.

A file map would be shorter, but its tensors stand at the file's own alignment, and torch's float32
matrix products give other bits for another alignment: the same weights saved anew would then
answer differently. It also ends the process with SIGBUS when a file shrinks while it is read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

_TORCH_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """What the file says of a tensor. `dtype` is the format's name, e.g. ``BF16``."""

    shape: tuple[int, ...]
    dtype: str
    offset: int
    """Of the first data byte, from the start of the file."""


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

    def read(self, name: str, into: Tensor | None = None) -> Tensor:
        """Return the tensor (float32 or bfloat16), `into` or freshly allocated. Blocks on the disk.

        `into` is contiguous and of the tensor's shape and dtype.

        Raises:
            OSError: the file cannot be read, or has become shorter than it was when opened.
        """
        header = self.headers[name]
        dtype = _TORCH_DTYPES[header.dtype]
        if into is None:
            into = torch.empty(header.shape, dtype=dtype)
        buffer = into.view(-1).view(torch.uint8).numpy().data
        with self.path.open("rb", buffering=0) as file:
            file.seek(header.offset)
            while buffer:
                count = file.readinto(buffer)
                if not count:
                    raise OSError(f"the file ends {len(buffer)} bytes too early")
                buffer = buffer[count:]
        return into
