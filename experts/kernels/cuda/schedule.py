"""Which part of a ragged product a program computes, found on the device.

The host knows no counts: offsets are read from device memory, so that a CUDA graph can be replayed
over other groups. G groups.
"""

from __future__ import annotations

import triton.language as tl

from experts.kernels.cuda.numbers import jit


@jit
def find_tile(
    pid: tl.tensor,
    row_offsets: tl.tensor,
    num_groups: tl.tensor,
    num_m_blocks: tl.tensor,
    MAX_GROUPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Return (group, M block, first row, end of the group's rows) of program `pid`.

    Programs of a group lie together, and in it those of one M block: its weights come from memory
    once, its rows stay in the cache. Beyond the last tile the group is MAX_GROUPS.
    """
    groups = tl.arange(0, MAX_GROUPS)
    used = groups < num_groups
    starts = tl.load(row_offsets + groups, mask=used, other=0)
    ends = tl.load(row_offsets + groups + 1, mask=used, other=0)
    tiles = (ends - starts + (BLOCK_N - 1)) // BLOCK_N
    programs_until = tl.cumsum(tiles, 0) * num_m_blocks
    before = programs_until <= pid
    group = tl.sum(before.to(tl.int32), 0)
    within = pid - tl.sum(tl.where(before, tiles, 0), 0) * num_m_blocks
    here = groups == group
    start = tl.sum(tl.where(here, starts, 0), 0)
    end = tl.sum(tl.where(here, ends, 0), 0)
    group_tiles = tl.maximum((end - start + (BLOCK_N - 1)) // BLOCK_N, 1)
    first_row = start + (within % group_tiles) * BLOCK_N
    return group, within // group_tiles, first_row, end
