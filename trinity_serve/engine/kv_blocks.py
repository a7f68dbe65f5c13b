"""Which KV blocks each running sequence holds, in the two pools that the layers need.

Global layers see the whole context; sliding layers see the last W positions, so their blocks are
given back as they leave the window. Block tables are numpy rows, one per running sequence, changed
in place as blocks come and go: building a step's batch is then a gather, not a rebuild.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trinity_serve.engine.block_pool import BlockPool
from trinity_serve.engine.config import EngineConfig, blocks_for
from trinity_serve.engine.prefix_cache import (
    NO_HIT,
    BlockDigests,
    PrefixHit,
    first_visible_block,
    longest_hit,
)
from trinity_serve.model.batch import KV_BLOCK_SIZE, Int32, Int64


@dataclass(slots=True)
class SequenceKv:
    """What one running sequence holds: table row `row`, columns as counted here."""

    row: int
    num_cached_tokens: int
    """Positions whose K and V came from the prefix cache."""
    num_global: int
    """Global columns 0 … num_global - 1 are held."""
    sliding_start: int
    sliding_end: int
    """Sliding columns sliding_start … sliding_end - 1 are held."""
    num_registered: int
    """Leading blocks that have been offered to the prefix cache."""


@dataclass(slots=True)
class PrefixCacheStats:
    """Tokens asked for and found, over all admissions."""

    query_tokens: int = 0
    hit_tokens: int = 0


class KvBlocks:
    """Two pools, the block tables and the prefix cache. Owned by one engine; not thread-safe."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self.global_pool = BlockPool(config.num_global_blocks)
        self.sliding_pool = BlockPool(config.num_sliding_blocks)
        shape = (config.max_num_seqs, config.max_blocks_per_seq)
        self.global_tables: Int32 = np.full(shape, -1, np.int32)
        self.sliding_tables: Int32 = np.full(shape, -1, np.int32)
        self.prefix_stats = PrefixCacheStats()
        self._free_rows = list(range(config.max_num_seqs - 1, -1, -1))

    @property
    def usage(self) -> float:
        """Share of the fuller pool that is held, 0 … 1."""
        pools = (self.global_pool, self.sliding_pool)
        return max(pool.num_held / pool.num_blocks for pool in pools)

    def admit(
        self, tokens_T: Int64, digests: BlockDigests, headroom: int, *, use_cache: bool = True
    ) -> SequenceKv | None:
        """Start a sequence with context `tokens_T`, or return None when blocks do not suffice.

        Suffices means: the global blocks of the whole context are there and taken now, so that two
        half-prefilled prompts never wait for each other; the sliding pool can give the most that
        the sequence will hold at a time, taken chunk by chunk. `headroom` blocks of each pool
        must stay available for sequences that are already running. Without `use_cache` every
        position is computed anew.
        """
        hit = self._find_prefix(tokens_T, digests) if use_cache else NO_HIT
        num_blocks = blocks_for(len(tokens_T))
        most_sliding = self._config.max_sliding_blocks_per_seq - len(hit.sliding_blocks)
        new_sliding = min(num_blocks - hit.num_blocks, most_sliding)
        if not self._free_rows or not (
            _fits(self.global_pool, hit.global_blocks, num_blocks - hit.num_blocks + headroom)
            and _fits(self.sliding_pool, hit.sliding_blocks, new_sliding + headroom)
        ):
            return None
        self.prefix_stats.query_tokens += len(tokens_T)
        self.prefix_stats.hit_tokens += hit.num_blocks * KV_BLOCK_SIZE
        return self._take(hit, num_blocks)

    def extend(self, kv: SequenceKv, end: int) -> bool:
        """Hold blocks for positions up to `end` - 1; False, and nothing taken, if they lack."""
        num_blocks = blocks_for(end)
        if num_blocks <= kv.sliding_end and num_blocks <= kv.num_global:
            return True
        new_global = max(0, num_blocks - kv.num_global)
        new_sliding = max(0, num_blocks - kv.sliding_end)
        if (
            new_global > self.global_pool.num_available
            or new_sliding > self.sliding_pool.num_available
        ):
            return False
        taken = self.global_pool.allocate(new_global)
        self.global_tables[kv.row, kv.num_global : kv.num_global + new_global] = taken
        kv.num_global += new_global
        taken = self.sliding_pool.allocate(new_sliding)
        self.sliding_tables[kv.row, kv.sliding_end : kv.sliding_end + new_sliding] = taken
        kv.sliding_end += new_sliding
        return True

    def commit(
        self, kv: SequenceKv, num_computed: int, tokens_T: Int64, digests: BlockDigests
    ) -> None:
        """Note that positions below `num_computed` are written.

        Blocks that became full can be shared from now on; sliding blocks that the row at
        `num_computed` no longer sees are given back (after they were made findable).
        """
        num_full = num_computed // KV_BLOCK_SIZE
        if num_full > kv.num_registered and self._config.prefix_cache:
            self._register(kv, num_full, tokens_T, digests)
        start = first_visible_block(num_computed, self._config.sliding_window)
        if start > kv.sliding_start:
            gone = self.sliding_tables[kv.row, kv.sliding_start : start]
            self.sliding_pool.release(gone.tolist())
            gone[:] = -1
            kv.sliding_start = start

    def release(self, kv: SequenceKv) -> None:
        """Give back all that the sequence holds. Its last blocks are evicted first."""
        held = self.global_tables[kv.row, : kv.num_global]
        self.global_pool.release(held[::-1].tolist())
        held[:] = -1
        held = self.sliding_tables[kv.row, kv.sliding_start : kv.sliding_end]
        self.sliding_pool.release(held[::-1].tolist())
        held[:] = -1
        self._free_rows.append(kv.row)

    def check(self) -> None:
        """Assert the invariants of pools and tables (for tests)."""
        for pool, tables in (
            (self.global_pool, self.global_tables),
            (self.sliding_pool, self.sliding_tables),
        ):
            pool.check()
            assert len(np.unique(tables[tables >= 0])) == pool.num_held
        assert not np.any(self.global_tables[self._free_rows] >= 0)
        assert not np.any(self.sliding_tables[self._free_rows] >= 0)

    def _find_prefix(self, tokens_T: Int64, digests: BlockDigests) -> PrefixHit:
        if not self._config.prefix_cache:
            return NO_HIT
        window = self._config.sliding_window
        return longest_hit(tokens_T, digests, self.global_pool, self.sliding_pool, window)

    def _take(self, hit: PrefixHit, num_blocks: int) -> SequenceKv:
        row = self._free_rows.pop()
        for block in hit.global_blocks:
            self.global_pool.share(block)
        for block in hit.sliding_blocks:
            self.sliding_pool.share(block)
        fresh = self.global_pool.allocate(num_blocks - hit.num_blocks)
        self.global_tables[row, :num_blocks] = hit.global_blocks + fresh
        self.sliding_tables[row, hit.sliding_start : hit.num_blocks] = hit.sliding_blocks
        return SequenceKv(
            row=row,
            num_cached_tokens=hit.num_blocks * KV_BLOCK_SIZE,
            num_global=num_blocks,
            sliding_start=hit.sliding_start,
            sliding_end=hit.num_blocks,
            num_registered=hit.num_blocks,
        )

    def _register(
        self, kv: SequenceKv, num_full: int, tokens_T: Int64, digests: BlockDigests
    ) -> None:
        for block_idx in range(kv.num_registered, num_full):
            digest = digests.at(block_idx, tokens_T)
            self.global_pool.register(int(self.global_tables[kv.row, block_idx]), digest)
            self.sliding_pool.register(int(self.sliding_tables[kv.row, block_idx]), digest)
        kv.num_registered = num_full


def _fits(pool: BlockPool, shared: list[int], num_new: int) -> bool:
    """Return whether `num_new` blocks are there once idle `shared` ones are taken into use."""
    num_idle = sum(pool.is_idle(block) for block in shared)
    return pool.num_available - num_idle >= num_new
