"""Whatever the bytes: a frame, or a `WireError`; nothing else, and no memory beyond the bytes."""

from __future__ import annotations

import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import WireError
from cluster.wire import decode
from tests.support.frames import about_groups, one_of_each, same
from tests.unit.cluster.test_wire import resealed, wire

FRAMES = [*one_of_each(), *about_groups()]
WIRES = [bytes(wire(frame)) for frame in FRAMES]
frame_idx = st.integers(0, len(WIRES) - 1)


def decode_or_refuse(data: bytes | bytearray) -> object:
    try:
        return decode(data)
    except WireError:
        return None


@given(st.binary(max_size=400))
def test_random_bytes_are_refused(data: bytes) -> None:
    decode_or_refuse(data)


@given(st.binary(max_size=400))
def test_random_bytes_behind_a_right_preamble_are_refused(data: bytes) -> None:
    decode_or_refuse(resealed(bytearray(WIRES[0][:24] + data)))


@given(frame_idx, st.data())
def test_a_truncated_frame_is_never_a_frame(index: int, data: st.DataObject) -> None:
    keep = data.draw(st.integers(0, len(WIRES[index]) - 1))
    assert decode_or_refuse(WIRES[index][:keep]) is None


@given(frame_idx, st.data())
def test_a_flipped_bit_is_never_taken_for_the_frame(index: int, data: st.DataObject) -> None:
    bit = data.draw(st.integers(0, 8 * len(WIRES[index]) - 1))
    changed = bytearray(WIRES[index])
    changed[bit // 8] ^= 1 << bit % 8
    assert decode_or_refuse(changed) is None


@settings(max_examples=400)
@given(frame_idx, st.data())
def test_changes_under_a_right_checksum_give_a_frame_or_an_error(
    index: int, data: st.DataObject
) -> None:
    changed = bytearray(WIRES[index])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed) - 1))
        patch = data.draw(st.binary(min_size=1, max_size=8))[: len(changed) - at]
        changed[at : at + len(patch)] = patch
    frame = decode_or_refuse(resealed(changed))
    if frame is not None:
        # What is accepted can be sent on: no number in it is out of its type's range.
        assert same(decode(wire(frame)), frame)  # type: ignore[arg-type]


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.sampled_from([76, 80, 84, 88]))
def test_a_count_that_is_a_lie_costs_no_memory(count: int, offset: int) -> None:
    changed = bytearray(WIRES[0])
    changed[24 + offset : 28 + offset] = count.to_bytes(4, "little")
    resealed(changed)
    tracemalloc.start()
    decode_or_refuse(changed)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 100_000
