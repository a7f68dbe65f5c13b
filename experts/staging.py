"""Host memory that experts are read into on their way to where they are computed with.

For a CUDA device it is page-locked: the device copies out of it by itself, beside the next read. It
is overwritten when the device has taken what was in it, and not before.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from experts.tensor_names import Shape


class Fence(Protocol):
    """A point in a device's work."""

    def synchronize(self) -> None:
        """Wait until the device has come past it."""
        ...


@dataclass
class Staging:
    """Sets of equal buffers in turn. `take` is called by the reader, `give_back` by the packer."""

    shapes: tuple[Shape, ...]
    dtype: torch.dtype
    device: torch.device
    _spare: deque[tuple[tuple[Tensor, ...], Fence | None]] = field(default_factory=deque)

    def take(self) -> tuple[Tensor, ...]:
        """Return buffers to be overwritten: used ones whose copies are done, or new ones."""
        if not self._spare:
            pinned = self.device.type == "cuda"
            return tuple(
                torch.empty(shape, dtype=self.dtype, pin_memory=pinned) for shape in self.shapes
            )
        buffers, fence = self._spare.popleft()
        if fence is not None:
            fence.synchronize()
        return buffers

    def give_back(self, buffers: tuple[Tensor, ...]) -> None:
        """Take buffers again, out of which copies to the device have been started."""
        self._spare.append((buffers, self.fence()))

    def fence(self) -> Fence | None:
        """Return the end of what the device has been told so far; None where copies are done."""
        if self.device.type != "cuda":
            return None
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return event
