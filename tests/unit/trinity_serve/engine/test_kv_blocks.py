from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import ConfigError
from tests.unit.trinity_serve.engine.fakes import make_config
from trinity_serve.engine.kv_blocks import KvBlocks
from trinity_serve.engine.prefix_cache import BlockDigests


def tokens_of(count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.arange(count, dtype=np.int64)


@pytest.mark.parametrize("window", [1, 31, 32, 33, 48, 64, 65])
def test_a_sliding_block_is_held_exactly_while_the_next_row_sees_it(window: int) -> None:
    kv = KvBlocks(make_config(sliding_window=window))
    tokens, digests = tokens_of(300), BlockDigests()
    seq = kv.admit(tokens[:1], digests, headroom=0)
    assert seq is not None
    for position in range(300):
        assert kv.extend(seq, position + 1)
        held = {int(i) for i in np.flatnonzero(kv.sliding_tables[seq.row] >= 0)}
        seen = {s // 32 for s in range(max(0, position - window + 1), position + 1)}
        assert held == seen
        kv.commit(seq, position + 1, tokens, digests)
        kv.check()
    assert kv.global_pool.num_held == 10
    kv.release(seq)
    kv.check()
    assert kv.usage == 0.0


def test_admission_takes_all_global_blocks_of_the_context_or_nothing() -> None:
    kv = KvBlocks(make_config(num_global_blocks=8, max_model_len=256))
    first = kv.admit(tokens_of(150), BlockDigests(b"a"), headroom=0)
    assert first is not None
    assert kv.global_pool.num_held == 5
    assert kv.admit(tokens_of(97), BlockDigests(b"b"), headroom=0) is None
    assert kv.admit(tokens_of(96), BlockDigests(b"b"), headroom=1) is None
    assert kv.global_pool.num_held == 5
    assert kv.admit(tokens_of(96), BlockDigests(b"b"), headroom=0) is not None
    kv.check()


def test_blocks_that_a_hit_takes_into_use_are_not_counted_as_available() -> None:
    config = make_config(num_global_blocks=4, num_sliding_blocks=8, max_model_len=128)
    kv = KvBlocks(config)
    tokens, digests = tokens_of(120), BlockDigests()
    seq = kv.admit(tokens[:97], digests, headroom=0)
    assert seq is not None
    assert kv.extend(seq, 97)
    kv.commit(seq, 97, tokens, digests)
    kv.release(seq)
    assert kv.global_pool.num_available == 4
    again = kv.admit(tokens[:100], digests, headroom=1)
    assert again is None
    again = kv.admit(tokens[:100], digests, headroom=0)
    assert again is not None
    assert again.num_cached_tokens == 96
    kv.check()


def test_without_the_prefix_cache_nothing_is_kept() -> None:
    kv = KvBlocks(make_config(prefix_cache=False))
    tokens, digests = tokens_of(100), BlockDigests()
    seq = kv.admit(tokens, digests, headroom=0)
    assert seq is not None
    assert kv.extend(seq, 100)
    kv.commit(seq, 100, tokens, digests)
    kv.release(seq)
    assert kv.global_pool.num_idle == kv.sliding_pool.num_idle == 0
    again = kv.admit(tokens, digests, headroom=0)
    assert again is not None
    assert again.num_cached_tokens == 0


@settings(max_examples=200, deadline=None)
@given(
    window=st.integers(1, 200),
    max_batched=st.integers(8, 200),
    start=st.integers(0, 500),
    data=st.data(),
)
def test_no_step_needs_more_sliding_blocks_than_promised(
    window: int, max_batched: int, start: int, data: st.DataObject
) -> None:
    rows = data.draw(st.integers(1, max_batched))
    config = make_config(
        sliding_window=window,
        max_num_batched_tokens=max_batched,
        max_prefill_chunk=8,
        max_model_len=1024,
    )
    seen = {s // 32 for s in range(max(0, start - window + 1), start + rows)}
    assert len(seen) <= config.max_sliding_blocks_per_seq


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_sliding_blocks": 2}, "num_sliding_blocks: 2 is too small.*at least 7"),
        ({"max_num_batched_tokens": 7}, "max_num_batched_tokens: 7"),
        ({"max_prefill_chunk": 129}, "max_prefill_chunk: 129"),
        ({"sliding_window": 0}, "sliding_window"),
    ],
)
def test_sizes_that_cannot_work_are_refused(changes: dict[str, int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_config(**changes)
