from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trinity_serve.engine.philox import philox_4x32, uniforms

# The known-answer vectors of Random123: counter, key, words.
KNOWN_ANSWERS = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_the_known_answers_come_out(counter: list[int], key: list[int], words: list[int]) -> None:
    counter_4N = np.array(counter, np.uint64)[:, None]
    assert philox_4x32(counter_4N, np.array(key, np.uint64)[:, None])[:, 0].tolist() == words


@given(
    st.lists(
        st.tuples(st.integers(-(2**63), 2**64 - 1), st.integers(0, 127), st.integers(0, 2**40)),
        min_size=1,
        max_size=9,
    )
)
def test_a_draw_depends_on_nothing_but_its_own_key(rows: list[tuple[int, int, int]]) -> None:
    seeds, choices, output_idx = zip(*rows, strict=True)
    together = uniforms(seeds, choices, output_idx).tolist()
    assert together == [float(uniforms([s], [c], [i])[0]) for s, c, i in rows]
    assert all(0.0 <= value < 1.0 for value in together)


def test_draws_are_spread_evenly_over_each_part_of_the_key() -> None:
    count = 4000
    for keys in (
        (range(count), [0] * count, [0] * count),
        ([7] * count, range(count), [0] * count),
        ([7] * count, [0] * count, range(count)),
    ):
        values = uniforms(*keys)
        assert len(np.unique(values)) == count
        counts, _ = np.histogram(values, bins=20, range=(0.0, 1.0))
        # 200 expected per bin, deviation 14; five of them.
        assert abs(counts - count / 20).max() < 70
