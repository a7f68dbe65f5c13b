from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trinity_serve.engine.block_pool import BlockPool
from trinity_serve.engine.prefix_cache import BlockDigests, first_visible_block, longest_hit


def digests_of(tokens: list[int], salt: bytes = b"") -> list[bytes]:
    array = np.array(tokens, np.int64)
    digests = BlockDigests(salt)
    return [digests.at(idx, array) for idx in range(len(tokens) // 32)]


def test_a_digest_names_all_tokens_up_to_the_end_of_its_block() -> None:
    first = digests_of([1] * 64)
    assert first == digests_of([1] * 64)
    changed_in_front = digests_of([2] + [1] * 63)
    assert first[0] != changed_in_front[0]
    assert first[1] != changed_in_front[1]
    changed_behind = digests_of([1] * 63 + [2])
    assert first[0] == changed_behind[0]
    assert first[1] != changed_behind[1]
    assert not set(first) & set(digests_of([1] * 64, salt=b"tenant"))


@settings(max_examples=300, deadline=None)
@given(
    num_tokens=st.integers(1, 330),
    window=st.sampled_from([1, 2, 31, 32, 33, 64, 65, 100, 1000]),
    in_global=st.lists(st.booleans(), min_size=10, max_size=10),
    in_sliding=st.lists(st.booleans(), min_size=10, max_size=10),
)
def test_the_longest_hit_is_the_longest_that_both_pools_serve(
    num_tokens: int, window: int, in_global: list[bool], in_sliding: list[bool]
) -> None:
    tokens = np.arange(num_tokens, dtype=np.int64)
    digests = BlockDigests()
    pools = BlockPool(10), BlockPool(10)
    for pool, held in zip(pools, (in_global, in_sliding), strict=True):
        for idx in range(num_tokens // 32):
            (block,) = pool.allocate(1)
            if held[idx]:
                pool.register(block, digests.at(idx, tokens))

    def usable(num_blocks: int) -> bool:
        row = num_blocks * 32
        seen = {position // 32 for position in range(max(0, row - window + 1), row)}
        return all(in_global[:num_blocks]) and all(in_sliding[idx] for idx in seen)

    hit = longest_hit(tokens, digests, *pools, window)
    assert hit.num_blocks == max(n for n in range((num_tokens - 1) // 32 + 1) if usable(n))
    assert hit.global_blocks == [
        pools[0].find(digests.at(idx, tokens)) for idx in range(hit.num_blocks)
    ]
    assert hit.sliding_start == first_visible_block(hit.num_blocks * 32, window)
    assert hit.sliding_blocks == [
        pools[1].find(digests.at(idx, tokens)) for idx in range(hit.sliding_start, hit.num_blocks)
    ]
