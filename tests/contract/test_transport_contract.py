"""What every transport owes: order, wholeness, bounds, ends that are noticed, and no blocking."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cluster.deadline import Deadline
from cluster.errors import FrameTooLargeError, LinkLostError
from cluster.wire import ExpertReply, Frame, Ping, Pong, encode, encoded_bytes
from tests.contract.transport_cases import CASES, Case, Pair, connect_pair, open_pair
from tests.support.frames import CALL_ID, a_call, a_reply, one_of_each, same

MIB = 2**20


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def bytes_case(case: Case) -> Case:
    if not case.has_bytes:
        pytest.skip("frames go by reference here: they have no size")
    return case


@pytest.fixture
def pair(case: Case, tmp_path: Path) -> Iterator[Pair]:
    pair = open_pair(case, tmp_path)
    yield pair
    pair.close()


@pytest.fixture
def small_pair(bytes_case: Case, tmp_path: Path) -> Iterator[Pair]:
    """Frames up to one MiB."""
    pair = open_pair(bytes_case, tmp_path, MIB)
    yield pair
    pair.close()


def numbered(number: int, num_rows: int = 2) -> ExpertReply:
    return a_reply(num_rows, 64, call_id=CALL_ID._replace(step=number))


def steps(frames: list[Frame]) -> list[int]:
    return [frame.call_id.step for frame in frames if isinstance(frame, ExpertReply)]


def test_every_kind_of_frame_arrives_as_it_was_both_ways(pair: Pair) -> None:
    frames = one_of_each()
    for frame in frames:
        pair.rank.link.send(frame)
        pair.shard.link.send(frame)
    pair.until(lambda: len(pair.shard.arrived) == len(pair.rank.arrived) == len(frames), "arrival")
    for arrived in (pair.shard.arrived, pair.rank.arrived):
        assert all(same(left, right) for left, right in zip(arrived, frames, strict=True))


def test_many_small_frames_keep_their_order(pair: Pair) -> None:
    for number in range(3000):
        pair.rank.link.send(Ping(number))
    pair.until(lambda: len(pair.shard.arrived) == 3000, "arrival of 3000 frames")
    assert pair.shard.arrived == [Ping(number) for number in range(3000)]


def test_frames_of_mixed_sizes_keep_their_order_and_bits(pair: Pair) -> None:
    sizes = [1, 3, 1000, 7, 4096, 1, 1, 20_000, 5, 300]
    frames = [numbered(number, rows) for number, rows in enumerate(sizes)]
    for frame in frames:
        pair.rank.link.send(frame)
    pair.until(lambda: len(pair.shard.arrived) == len(frames), "arrival")
    assert all(map(same, pair.shard.arrived, frames))


def test_a_frame_of_sixteen_mib_arrives(pair: Pair) -> None:
    frame = a_reply(2048, 4096, dtype=torch.bfloat16)
    pair.rank.link.send(frame)
    pair.until(lambda: bool(pair.shard.arrived), "arrival")
    assert same(pair.shard.arrived[0], frame)


def test_rows_stay_as_they_are_while_more_frames_arrive(pair: Pair) -> None:
    first = a_call(64, width=128)
    pair.rank.link.send(first)
    for number in range(300):
        pair.rank.link.send(numbered(number, 200))
    pair.until(lambda: len(pair.shard.arrived) == 301, "arrival")
    assert same(pair.shard.arrived[0], first)


def test_duplicates_and_late_frames_are_delivered_as_they_came(pair: Pair) -> None:
    for number in (2, 1, 2):
        pair.rank.link.send(numbered(number))
    pair.until(lambda: len(pair.shard.arrived) == 3, "arrival")
    assert steps(pair.shard.arrived) == [2, 1, 2]  # type: ignore[arg-type]


def test_both_ends_flooding_each_other_do_not_deadlock(pair: Pair) -> None:
    for number in range(100):
        pair.rank.link.send(numbered(number, 1000))
        pair.shard.link.send(numbered(number, 1000))
    pair.until(lambda: len(pair.shard.arrived) == len(pair.rank.arrived) == 100, "arrival")
    assert steps(pair.rank.arrived) == list(range(100))  # type: ignore[arg-type]


@pytest.mark.parametrize("closing", ["rank", "shard"])
def test_a_closed_end_is_seen_within_a_second_and_once(pair: Pair, closing: str) -> None:
    ends = {"rank": pair.rank, "shard": pair.shard}
    gone = ends.pop(closing)
    (left,) = ends.values()
    gone.poller.remove(gone.link)
    gone.link.close()
    start_s = time.monotonic()
    pair.until(lambda: bool(left.arrived), "the end")
    assert time.monotonic() - start_s < 1.0
    for _ in range(20):
        left.turn()
    assert [type(item) for item in left.arrived] == [LinkLostError]
    with pytest.raises(LinkLostError):
        left.link.send(Ping(1))


def test_what_was_sent_before_closing_still_arrives(pair: Pair) -> None:
    for number in range(5):
        pair.shard.link.send(numbered(number))
    pair.shard.poller.remove(pair.shard.link)
    pair.shard.link.close()
    pair.until(lambda: len(pair.rank.arrived) == 6, "the end")
    assert isinstance(pair.rank.arrived[5], LinkLostError)
    assert steps(pair.rank.arrived) == list(range(5))  # type: ignore[arg-type]


def test_a_closed_link_can_be_closed_again_and_sends_nothing(pair: Pair) -> None:
    pair.rank.poller.remove(pair.rank.link)
    pair.rank.link.close()
    pair.rank.link.close()
    with pytest.raises(LinkLostError):
        pair.rank.link.send(Ping(1))


def test_links_of_one_listener_are_apart(pair: Pair) -> None:
    others = [connect_pair(pair.transport, pair.listener) for _ in range(3)]
    for number, other in enumerate(others):
        other.rank.link.send(numbered(number))
    for number, other in enumerate(others):
        other.until(lambda other=other: bool(other.shard.arrived), "arrival")  # type: ignore[misc]
        assert steps(other.shard.arrived) == [number]  # type: ignore[arg-type]
    others[0].rank.link.close()
    others[1].rank.link.send(Ping(5))
    others[1].until(lambda: len(others[1].shard.arrived) == 2, "arrival beside a closed link")
    for other in others:
        for end in (other.rank, other.shard):
            end.poller.remove(end.link)
            end.link.close()
            end.poller.close()


def test_nobody_listening_is_a_lost_link_before_the_deadline(case: Case, tmp_path: Path) -> None:
    pair = open_pair(case, tmp_path)
    pair.close()
    start_s = time.monotonic()
    with pytest.raises(LinkLostError):
        pair.transport.connect(pair.listener.address, Deadline.after(3.0))
    assert time.monotonic() - start_s < 2.5


def test_an_address_can_be_listened_on_by_one_only(case: Case, tmp_path: Path) -> None:
    pair = open_pair(case, tmp_path)
    with pytest.raises(OSError, match=pair.listener.address.rpartition("/")[2]):
        pair.transport.listen(pair.listener.address)
    pair.close()
    again = pair.transport.listen(pair.listener.address)
    again.close()


def test_a_frame_over_the_bound_is_refused_by_its_sender(small_pair: Pair) -> None:
    with pytest.raises(FrameTooLargeError, match="bound"):
        small_pair.rank.link.send(a_reply(1024, 512))
    small_pair.rank.link.send(Ping(1))
    small_pair.until(lambda: bool(small_pair.shard.arrived), "arrival after a refusal")
    assert small_pair.shard.arrived == [Ping(1)]


@pytest.mark.parametrize("num_rows", [40, 400])
def test_a_frame_over_the_receivers_bound_is_refused_with_the_link_alive(
    bytes_case: Case, tmp_path: Path, num_rows: int
) -> None:
    frame = a_reply(num_rows, 256)
    size = encoded_bytes(encode(frame))
    pair = open_pair(bytes_case, tmp_path, bound=size - 100)
    for sent in (Ping(1), frame, Ping(2), frame, Ping(3)):
        pair.rank.link.send(sent)
    pair.until(lambda: len(pair.shard.arrived) == 5, "arrival")
    kinds = [type(item) for item in pair.shard.arrived]
    assert kinds == [Ping, FrameTooLargeError, Ping, FrameTooLargeError, Ping]
    pair.close()


def test_a_reader_that_stops_loses_its_link_and_memory_stays_bounded(small_pair: Pair) -> None:
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def flood() -> None:
        for number in range(1000):
            small_pair.rank.link.send(numbered(number, 2000))
            small_pair.rank.turn()

    with pytest.raises(LinkLostError, match="stopped reading"):
        flood()
    grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb
    assert grown_kb < 64 * 1024


def test_waiting_for_nothing_takes_the_timeout_and_no_longer(pair: Pair) -> None:
    start_s = time.monotonic()
    assert pair.rank.poller.wait(0.05) == []
    assert 0.04 < time.monotonic() - start_s < 1.0


def test_an_answer_ends_a_wait(pair: Pair) -> None:
    pair.rank.link.send(Ping(7))
    pair.until(lambda: bool(pair.shard.arrived), "arrival")
    pair.shard.link.send(Pong(7))
    start_s = time.monotonic()
    assert [item for _, item in pair.rank.poller.wait(5.0)] == [Pong(7)]
    assert time.monotonic() - start_s < 1.0
