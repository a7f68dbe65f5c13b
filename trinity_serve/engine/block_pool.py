"""A pool of KV blocks: who holds which, and which finished ones can serve as a cached prefix.

Knows ids, reference counts and digests; nothing of sequences, layers or tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable


class BlockPool:
    """`num_blocks` interchangeable blocks. A block is free, held (references > 0), or idle.

    Idle: nobody holds it, but its content is registered under a digest and can be shared again
    until the block is needed for something else. The longest idle goes first.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        # A stack: the block freed last is the one most likely still in the processor's caches.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._references = [0] * num_blocks
        self._digests: list[bytes | None] = [None] * num_blocks
        self._by_digest: dict[bytes, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can give: free ones and idle ones."""
        return len(self._free) + len(self._idle)

    @property
    def num_held(self) -> int:
        """Blocks that somebody holds."""
        return self.num_blocks - self.num_available

    @property
    def num_idle(self) -> int:
        """Blocks kept only for their content."""
        return len(self._idle)

    def allocate(self, count: int) -> list[int]:
        """Return `count` blocks with one reference each; the caller has checked `num_available`."""
        assert count <= self.num_available
        blocks = [self._free.pop() if self._free else self._evict() for _ in range(count)]
        for block in blocks:
            self._references[block] = 1
        return blocks

    def share(self, block: int) -> None:
        """Add a reference to a block that is held or idle."""
        if self._references[block] == 0:
            del self._idle[block]
        self._references[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Drop one reference of each; the first released is the first to be evicted."""
        for block in blocks:
            assert self._references[block] > 0, f"block {block} is freed twice"
            self._references[block] -= 1
            if self._references[block] == 0:
                self._retire(block)

    def register(self, block: int, digest: bytes) -> None:
        """Make a held block's content findable. Of two blocks with one content the first stays."""
        assert self._references[block] > 0
        if digest not in self._by_digest and self._digests[block] is None:
            self._by_digest[digest] = block
            self._digests[block] = digest

    def find(self, digest: bytes) -> int | None:
        """Return the block registered under `digest`."""
        return self._by_digest.get(digest)

    def is_idle(self, block: int) -> bool:
        """Return whether nobody holds the block but its content is kept."""
        return block in self._idle

    def check(self) -> None:
        """Assert that every block is in exactly one state."""
        free, idle = set(self._free), set(self._idle)
        held = {block for block, count in enumerate(self._references) if count > 0}
        assert len(free) == len(self._free)
        assert len(free) + len(idle) + len(held) == self.num_blocks
        assert free | idle | held == set(range(self.num_blocks))
        assert all(self._digests[block] is None for block in free)
        assert all(self._digests[block] is not None for block in idle)
        assert {b: d for d, b in self._by_digest.items()} == {
            block: digest for block, digest in enumerate(self._digests) if digest is not None
        }

    def _retire(self, block: int) -> None:
        if self._digests[block] is None:
            self._free.append(block)
        else:
            self._idle[block] = None

    def _evict(self) -> int:
        block, _ = self._idle.popitem(last=False)
        digest = self._digests[block]
        assert digest is not None
        del self._by_digest[digest]
        self._digests[block] = None
        return block
