"""Copies of a step's host arrays on the device, made once per step.

A forward pass asks for the same positions, slots and block tables in every layer. They are found
again by the identity of the array or batch that they were made from, which is kept alive so that an
identity is never used twice. A captured CUDA graph will want buffers that stay where they are: it
puts its own copies behind the same method.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

T = TypeVar("T")

_ROOM = 64
"""Two micro-batches have 14 arrays; host arrays of a past step are freed after as many new ones."""


class Remembered(Generic[T]):
    """Values made from objects that never change, by their identity. Used by one thread."""

    def __init__(self, room: int = _ROOM) -> None:
        self._room = room
        self._made: OrderedDict[Hashable, tuple[object, T]] = OrderedDict()

    def of(self, sources: tuple[object, ...], make: Callable[[], T]) -> T:
        """Return what `make` made when it was first asked about these very objects."""
        key = tuple(id(source) for source in sources)
        found = self._made.get(key)
        if found is None:
            found = sources, make()
            self._made[key] = found
            if len(self._made) > self._room:
                self._made.popitem(last=False)
        return found[1]


def upload(array: npt.NDArray[np.generic], device: torch.device) -> Tensor:
    """Copy a host array to the device, in the order of its stream, without waiting for it."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
