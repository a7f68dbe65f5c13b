from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trinity_serve.engine.block_pool import BlockPool


class PoolMachine(RuleBasedStateMachine):
    """Any order of calls, against a plain list of who holds what."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(6)
        self.references: list[int] = []
        self.contents: dict[int, bytes] = {}

    @rule(count=st.integers(1, 4))
    def allocate(self, count: int) -> None:
        if count > self.pool.num_available:
            return
        blocks = self.pool.allocate(count)
        assert not set(blocks) & set(self.references)
        for block in blocks:
            self.contents.pop(block, None)
        self.references += blocks

    @precondition(lambda self: self.references)
    @rule(data=st.data(), digest=st.sampled_from([b"a", b"b", b"c", b"d"]))
    def register(self, data: st.DataObject, digest: bytes) -> None:
        block = data.draw(st.sampled_from(self.references))
        self.pool.register(block, digest)
        if digest not in self.contents.values():
            self.contents.setdefault(block, digest)

    @rule(digest=st.sampled_from([b"a", b"b", b"c", b"d"]))
    def share(self, digest: bytes) -> None:
        block = self.pool.find(digest)
        if block is None:
            assert digest not in self.contents.values()
            return
        assert self.contents[block] == digest
        self.pool.share(block)
        self.references.append(block)

    @precondition(lambda self: self.references)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(self.references))
        self.references.remove(block)
        self.pool.release([block])

    @invariant()
    def every_block_is_in_one_state(self) -> None:
        self.pool.check()
        assert self.pool.num_held == len(set(self.references))
        idle = {b for b in self.contents if b not in self.references}
        assert {b for b in range(6) if self.pool.is_idle(b)} == idle
        assert self.pool.num_idle == len(idle)


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_double_free_is_caught() -> None:
    pool = BlockPool(2)
    blocks = pool.allocate(1)
    pool.release(blocks)
    with pytest.raises(AssertionError, match="freed twice"):
        pool.release(blocks)


def test_the_longest_idle_block_is_evicted_first_and_free_ones_before_it() -> None:
    pool = BlockPool(3)
    a, b, _ = pool.allocate(3)
    pool.register(a, b"a")
    pool.register(b, b"b")
    pool.release([b, a, _])
    pool.allocate(1)
    assert (pool.find(b"a"), pool.find(b"b")) == (a, b)
    pool.allocate(1)
    assert (pool.find(b"a"), pool.find(b"b")) == (a, None)
