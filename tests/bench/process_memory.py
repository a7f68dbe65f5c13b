"""The arithmetic of what a process holds beyond weights and KV: pure, over what was measured."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LIMIT_BYTES = 250_000_000
"""Of one process of ours beyond weights and KV."""
POOL_BYTES = 32 << 20
"""No KV pool that is measured is smaller."""
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) ")


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


def pool_pss_bytes(smaps: str) -> int:
    """Return what is resident of the KV pools in the text of `/proc/PID/smaps`.

    They are the large mappings that ask for huge pages, which keeps them apart from malloc's:
    reserved at once, taken page by page as they are written. Tables of weights ask too; this is for
    models whose rank has none of `POOL_BYTES`.
    """
    total = size = pss = 0
    for line in smaps.splitlines():
        if (head := _MAPPING.match(line)) is not None:
            size, pss = int(head[2], 16) - int(head[1], 16), 0
        elif line.startswith("Pss:"):
            pss = int(line.split()[1]) * 1024
        elif line.startswith("VmFlags:") and "hg" in line.split() and size >= POOL_BYTES:
            total += pss
    return total


def table(rows: Sequence[ProcessMemory]) -> Iterator[str]:
    """Yield a line for each process, in MB, with those over the limit marked."""
    yield f"{'process':<18} {'PSS':>7} {'weights':>8} {'KV':>7} {'rest':>7}  MB"
    for row in rows:
        sizes = (row.pss_bytes, row.weight_bytes, row.kv_bytes, row.rest_bytes)
        pss, weights, kv, rest = (f"{size / 1e6:.1f}" for size in sizes)
        over = "  over the limit" if row.kind != "ray" and row.rest_bytes > LIMIT_BYTES else ""
        yield f"{row.kind:<18} {pss:>7} {weights:>8} {kv:>7} {rest:>7}{over}"
