"""Buffers go round, and are overwritten only when the device has taken what was in them."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from experts.staging import Fence, Staging

SHAPES = ((2, 3), (3, 2))


class FakeFence:
    """Tells whether it was waited for."""

    def __init__(self) -> None:
        self.num_waits = 0

    def synchronize(self) -> None:
        self.num_waits += 1


@dataclass
class FakeDeviceStaging(Staging):
    """A device that copies by itself, without one."""

    fences: list[FakeFence] = field(default_factory=list)

    def fence(self) -> Fence:
        self.fences.append(FakeFence())
        return self.fences[-1]


def test_a_buffer_given_back_is_the_next_one_taken() -> None:
    staging = Staging(SHAPES, torch.bfloat16, torch.device("cpu"))
    first, second = staging.take(), staging.take()
    assert [tuple(buffer.shape) for buffer in first] == list(SHAPES)
    assert first[0].data_ptr() != second[0].data_ptr()
    staging.give_back(first)
    assert staging.take() is first
    assert not first[0].is_pinned()


def test_copies_out_of_a_buffer_are_waited_for_before_it_is_taken_again() -> None:
    staging = FakeDeviceStaging(SHAPES, torch.bfloat16, torch.device("cpu"))
    first = staging.take()
    assert staging.fences == []
    staging.give_back(first)
    (fence,) = staging.fences
    assert fence.num_waits == 0
    staging.take()
    assert fence.num_waits == 1


def test_for_a_cuda_device_buffers_are_page_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def empty(shape: tuple[int, ...], dtype: torch.dtype, pin_memory: bool) -> torch.Tensor:
        asked.append(pin_memory)
        return torch.zeros(shape, dtype=dtype)

    monkeypatch.setattr(torch, "empty", empty)
    Staging(SHAPES, torch.bfloat16, torch.device("cuda")).take()
    assert asked == [True, True]
