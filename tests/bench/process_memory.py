"""The arithmetic of what a process holds beyond weights and KV: pure, over what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LIMIT_BYTES = 250_000_000
"""Of one process of ours beyond weights and KV."""


@dataclass(frozen=True)
class ProcessMemory:
    """One process, or all that Ray itself runs together."""

    kind: str
    pss_bytes: int
    weight_bytes: int = 0
    kv_bytes: int = 0

    @property
    def rest_bytes(self) -> int:
        """Interpreter, libraries, buffers: what is neither weights nor KV."""
        return self.pss_bytes - self.weight_bytes - self.kv_bytes


def kv_bytes_touched(block_bytes: int, block_tokens: int, sequences: Sequence[int]) -> int:
    """Return the KV that sequences of these lengths, in tokens, have written.

    KV pools are reserved at once, but memory is taken by what is written: a block, once used, is
    resident. Counted as if no two sequences took the same block, so that a reused block makes the
    KV smaller than this and the rest seem smaller by as much: use sequences that run all at once.
    """
    return sum(-(-tokens // block_tokens) for tokens in sequences) * block_bytes


def table(rows: Sequence[ProcessMemory]) -> Iterator[str]:
    """Yield a line for each process, in MB, with those over the limit marked."""
    yield f"{'process':<18} {'PSS':>7} {'weights':>8} {'KV':>7} {'rest':>7}  MB"
    for row in rows:
        sizes = (row.pss_bytes, row.weight_bytes, row.kv_bytes, row.rest_bytes)
        pss, weights, kv, rest = (f"{size / 1e6:.1f}" for size in sizes)
        over = "  over the limit" if row.kind != "ray" and row.rest_bytes > LIMIT_BYTES else ""
        yield f"{row.kind:<18} {pss:>7} {weights:>8} {kv:>7} {rest:>7}{over}"
