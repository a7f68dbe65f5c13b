"""Which KV blocks of a prefix exist already: chained digests and the longest usable hit.

A block's K and V are a pure function of all tokens up to its end, and in this system of nothing
else, down to the bit. So a block named by the digest of those tokens can stand in for computing it.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from trinity_serve.engine.block_pool import BlockPool
from trinity_serve.model.batch import KV_BLOCK_SIZE, Int64

DIGEST_BYTES = 16


class BlockDigests:
    """Digests of a sequence's full blocks, each over its own tokens and its predecessor's digest.

    `salt` keeps tenants apart: equal prompts under different salts never share a block.
    """

    __slots__ = ("_digests", "_root")

    def __init__(self, salt: bytes = b"") -> None:
        self._root = blake2b(salt, digest_size=DIGEST_BYTES, person=b"kv-prefix").digest()
        self._digests: list[bytes] = []

    def at(self, block_idx: int, tokens_T: Int64) -> bytes:
        """Return the digest of block `block_idx`; `tokens_T` holds at least its tokens."""
        while len(self._digests) <= block_idx:
            start = len(self._digests) * KV_BLOCK_SIZE
            parent = self._digests[-1] if self._digests else self._root
            tokens = tokens_T[start : start + KV_BLOCK_SIZE].tobytes()
            self._digests.append(blake2b(parent + tokens, digest_size=DIGEST_BYTES).digest())
        return self._digests[block_idx]


@dataclass(frozen=True, slots=True)
class PrefixHit:
    """Blocks that hold the first `num_blocks` blocks' worth of a sequence.

    `sliding_blocks` stand for block indices `sliding_start` … num_blocks - 1: all that the next
    row can see.
    """

    num_blocks: int
    global_blocks: list[int]
    sliding_start: int
    sliding_blocks: list[int]


NO_HIT = PrefixHit(0, [], 0, [])


def first_visible_block(position: int, sliding_window: int) -> int:
    """Return the block index of the earliest position that row `position` sees (s > p - W)."""
    return max(0, position - sliding_window + 1) // KV_BLOCK_SIZE


def longest_hit(
    tokens_T: Int64,
    digests: BlockDigests,
    global_pool: BlockPool,
    sliding_pool: BlockPool,
    sliding_window: int,
) -> PrefixHit:
    """Return the longest prefix that both pools can serve; takes no references.

    The global pool must hold every block of it, the sliding pool those that the first computed
    row sees. The last token is never part of a hit, because its logits are wanted: a prompt of
    whole blocks leaves its last block to be computed again, in a fresh block.
    """
    global_blocks: list[int] = []
    sliding_blocks: list[int | None] = []
    best, run_start = 0, 0
    for block_idx in range((len(tokens_T) - 1) // KV_BLOCK_SIZE):
        digest = digests.at(block_idx, tokens_T)
        block = global_pool.find(digest)
        if block is None:
            break
        global_blocks.append(block)
        sliding_blocks.append(sliding_pool.find(digest))
        if sliding_blocks[-1] is None:
            run_start = block_idx + 1
        if first_visible_block((block_idx + 1) * KV_BLOCK_SIZE, sliding_window) >= run_start:
            best = block_idx + 1
    start = first_visible_block(best * KV_BLOCK_SIZE, sliding_window)
    visible = [block for block in sliding_blocks[start:best] if block is not None]
    assert len(visible) == best - start
    return PrefixHit(best, global_blocks[:best], start, visible)
