"""A serving shard is brought to what it is told to hold, one expert at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from cluster.errors import CheckpointError
from cluster.pool_messages import HoldsLE
from experts.checkpoint import Checkpoint, ExpertTensors
from experts.holding import LiveHolding
from experts.kernels.reference import ReferenceKernels
from experts.store import ExpertStore, checksum_of


class Desk:
    """A store, its holding and its reading thread; the test is the loop."""

    def __init__(self, checkpoint: Checkpoint, first_LE: HoldsLE) -> None:
        self.store = ExpertStore.empty(checkpoint.config, ReferenceKernels(), "float32")
        self.store.load_held(checkpoint, first_LE)
        self.woken = threading.Event()
        self.holding = LiveHolding(self.store, checkpoint, self.woken.set)
        self.thread = threading.Thread(target=self.holding.run, daemon=True)
        self.thread.start()

    def holds(self) -> HoldsLE:
        return np.not_equal(self.store.sums_LE, 0)

    def turn_until(self, wanted_LE: HoldsLE) -> list[int]:
        """Apply until the store is as wanted; return how many experts it held after each turn."""
        counts = []
        deadline_s = time.monotonic() + 10.0
        while not np.array_equal(self.holds(), wanted_LE):
            assert time.monotonic() < deadline_s
            self.woken.wait(1.0)
            self.woken.clear()
            if self.holding.apply():
                counts.append(int(self.holds().sum()))
        return counts

    def close(self) -> None:
        self.holding.stop()
        self.thread.join(5.0)
        assert not self.thread.is_alive()


@pytest.fixture
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return Checkpoint.open(str(tiny_checkpoint))


def marks(checkpoint: Checkpoint, experts: range) -> HoldsLE:
    holds_LE = np.zeros((checkpoint.config.num_moe_layers, checkpoint.config.num_experts), np.bool_)
    holds_LE[:, experts.start : experts.stop] = True
    return holds_LE


@pytest.fixture
def desk(checkpoint: Checkpoint) -> Iterator[Desk]:
    desk = Desk(checkpoint, marks(checkpoint, range(0, 4)))
    yield desk
    desk.close()


def test_what_is_new_is_read_one_by_one_and_the_rest_freed(
    desk: Desk, checkpoint: Checkpoint
) -> None:
    wanted_LE = marks(checkpoint, range(2, 6))
    desk.holding.hold(wanted_LE)
    counts = desk.turn_until(wanted_LE)
    # Freed at once, then one more with each turn.
    steps = [after - before for before, after in pairwise(counts)]
    assert set(steps) == {1}
    for layer, table in enumerate(desk.store.tables):
        held = [e for e in range(checkpoint.config.num_experts) if table.holds(e)]
        assert held == [2, 3, 4, 5], layer


def test_the_revision_tells_of_every_change_and_of_none_twice(
    desk: Desk, checkpoint: Checkpoint
) -> None:
    wanted_LE = marks(checkpoint, range(0, 3))
    before = desk.holding.revision
    desk.holding.hold(wanted_LE)
    desk.turn_until(wanted_LE)
    after = desk.holding.revision
    desk.holding.hold(wanted_LE)
    assert not desk.holding.apply()
    assert before < after == desk.holding.revision


def test_an_expert_that_is_not_wanted_any_more_is_not_put(
    desk: Desk, checkpoint: Checkpoint
) -> None:
    desk.holding.hold(marks(checkpoint, range(0, 5)))
    desk.woken.wait(5.0)
    desk.holding.hold(marks(checkpoint, range(0, 4)))
    desk.holding.apply()
    assert (desk.holds() == marks(checkpoint, range(0, 4))).all()


def test_a_read_that_fails_is_told_and_harms_nothing(
    desk: Desk, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(layer: int, expert: int) -> ExpertTensors:
        raise CheckpointError("file", "tensor", "readable data", "a cut cable")

    monkeypatch.setattr(checkpoint, "expert", unreadable)
    desk.holding.hold(marks(checkpoint, range(0, 5)))
    deadline_s = time.monotonic() + 5.0
    while not desk.holding.problem and time.monotonic() < deadline_s:
        threading.Event().wait(0.01)
    assert "a cut cable" in desk.holding.problem
    desk.holding.apply()
    assert (desk.holds() == marks(checkpoint, range(0, 4))).all()


def test_checksums_are_those_of_the_checkpoint_whatever_is_computed_in(
    checkpoint: Checkpoint,
) -> None:
    some_LE = marks(checkpoint, range(1, 2))
    sums = []
    for dtype in ("float32", "bfloat16"):
        store = ExpertStore.empty(checkpoint.config, ReferenceKernels(), dtype)
        store.load_held(checkpoint, some_LE)
        sums.append(store.sums_LE)
    assert (sums[0] == sums[1]).all()
    assert ((sums[0] != 0) == some_LE).all()
    gate, up, down = checkpoint.expert(checkpoint.config.moe_layers[0], 1)
    changed = gate.clone()
    changed[0, 0] += 1
    assert checksum_of((changed, up, down)) != checksum_of((gate, up, down)) == sums[0][0, 1]
