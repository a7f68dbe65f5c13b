"""Groups beside a link that works: confirmed before use, dropped at the first error, made again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cluster.errors import ConfigError, LinkLostError, MalformedFrameError
from cluster.metrics import Metric
from cluster.tls import TlsFiles
from cluster.transport import transport_for
from cluster.transport.collective import negotiation
from cluster.transport.collective.limits import Limits
from cluster.transport.collective.link import CollectiveLink
from cluster.transport.collective.pairs import Exchange, LaneStore, Pair, open_pair
from cluster.transport.collective.transport import CollectiveTransport
from cluster.types import PlacementVersion
from cluster.wire import (
    DEFAULT_MAX_FRAME_BYTES,
    ExpertReply,
    Frame,
    GroupNote,
    GroupVerb,
    Parcel,
    Ping,
    Welcome,
)
from tests.contract.transport_cases import Case, End, connect_pair
from tests.contract.transport_cases import Pair as Ends
from tests.contract.transport_cases import open_pair as connect
from tests.support.frames import CALL_ID, a_reply, same

QUICK = Limits(least_rows_bytes=1, exchange_s=0.3, build_s=5.0, first_pause_s=0.05)


def quick_transport(bound: int) -> CollectiveTransport:
    return CollectiveTransport(QUICK, max_frame_bytes=bound)


CASE = Case(quick_transport, lambda folder: f"collective+unix:{folder}/s/socket")


@dataclass
class Faults:
    """What befalls exchanges of the next generations, by the member that sends them."""

    silent: set[int] = field(default_factory=set)
    damaging: set[int] = field(default_factory=set)
    broken: set[int] = field(default_factory=set)
    num_built: int = 0


@dataclass
class SpoiltPair(Pair):
    """A real pair whose exchanges may get lost or damaged; the first of all, a trial, never is."""

    pair: Pair
    member: int
    faults: Faults

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.pair.device

    def send(self, rows_B: Tensor, sequence: int) -> Exchange:
        if sequence and self.member in self.faults.broken:
            raise RuntimeError("connection reset\nand more")
        if sequence and self.member in self.faults.silent:
            return self.pair.send(rows_B, sequence + 1000)
        if sequence and self.member in self.faults.damaging:
            rows_B = rows_B ^ 1
        return self.pair.send(rows_B, sequence)

    def receive(self, rows_B: Tensor, sequence: int) -> Exchange:
        return self.pair.receive(rows_B, sequence)

    def close(self) -> None:
        self.pair.close()


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    faults = Faults()

    def open_spoilt(store: LaneStore, member: int, backend: str, place: str) -> Pair:
        faults.num_built += 1
        return SpoiltPair(open_pair(store, member, backend, place), member, faults)

    monkeypatch.setattr(negotiation, "open_pair", open_spoilt)
    return faults


@pytest.fixture
def ends(faults: Faults, tmp_path: Path) -> Iterator[Ends]:
    ends = connect(CASE, tmp_path)
    yield ends
    ends.close()


def link_of(end: End) -> CollectiveLink:
    assert isinstance(end.link, CollectiveLink)
    return end.link


def counted(end: End, metric: Metric) -> int:
    return link_of(end).metrics[metric]


def numbered(number: int, num_rows: int = 20) -> ExpertReply:
    return a_reply(num_rows, 64, call_id=CALL_ID._replace(step=number))


def send_both_ways(ends: Ends, first: int, count: int) -> list[Frame]:
    """Send rows and small frames; wait until all have come as they were, in order."""
    frames: list[Frame] = []
    for number in range(first, first + count):
        frames += [numbered(number, 1 + number), Ping(number)]
    for end in (ends.rank, ends.shard):
        end.arrived.clear()
    for frame in frames:
        ends.rank.link.send(frame)
        ends.shard.link.send(frame)
    ends.until(lambda: arrived(ends) == {len(frames)}, f"{len(frames)} frames, whatever befalls")
    for end in (ends.rank, ends.shard):
        assert all(map(same, end.arrived, frames))
    return frames


def arrived(ends: Ends) -> set[int]:
    return {len(ends.rank.arrived), len(ends.shard.arrived)}


def form_again(ends: Ends) -> None:
    """Wait for a new generation; signs of life give the ends their turns meanwhile."""

    def formed() -> bool:
        ends.rank.link.send(Ping(0))
        return bool(link_of(ends.rank).generation and link_of(ends.shard).generation)

    ends.until(formed, "a new generation")
    ends.rank.link.send(Ping(1))
    ends.until(lambda: ends.shard.arrived[-1:] == [Ping(1)], "the last sign of life")


def test_rows_go_by_the_group_and_small_frames_beside_them(ends: Ends) -> None:
    send_both_ways(ends, 0, 10)
    for end in (ends.rank, ends.shard):
        assert counted(end, Metric.COLLECTIVE_FRAMES) == 10
        assert counted(end, Metric.COLLECTIVE_GROUPS) == 1
        assert counted(end, Metric.COLLECTIVE_DROPS) == counted(end, Metric.COLLECTIVE_RESENT) == 0


def test_rows_below_the_least_size_stay_on_the_base(faults: Faults, tmp_path: Path) -> None:
    limits = Limits(least_rows_bytes=20 * 64 * 4)
    case = Case(lambda bound: CollectiveTransport(limits, max_frame_bytes=bound), CASE.bind)
    ends = connect(case, tmp_path)
    ends.shard.link.send(numbered(0, 19))
    ends.shard.link.send(numbered(1, 20))
    ends.until(lambda: len(ends.rank.arrived) == 2, "arrival")
    assert counted(ends.shard, Metric.COLLECTIVE_FRAMES) == 1
    ends.close()


def test_nothing_is_built_for_a_rank_that_was_not_let_in(faults: Faults, tmp_path: Path) -> None:
    transport = quick_transport(DEFAULT_MAX_FRAME_BYTES)
    listener = transport.listen(CASE.bind(tmp_path))
    ends = connect_pair(transport, listener)
    link_of(ends.rank)._base.send(GroupNote(GroupVerb.OFFER, 1, 1, "gloo", b"127.0.0.1"))
    ends.rank.link.send(Ping(1))
    ends.until(lambda: ends.shard.arrived == [Ping(1)], "a frame behind the offer")
    assert faults.num_built == 0
    link_of(ends.rank)._base.send(Parcel(1, 1, 0, 8, b"head"))
    ends.until(lambda: len(ends.shard.arrived) == 2, "a refusal")
    assert isinstance(ends.shard.arrived[1], MalformedFrameError)
    ends.close()


@pytest.mark.parametrize("kind", ["silent", "damaging", "broken"])
@pytest.mark.parametrize("member", [0, 1])
def test_whatever_befalls_exchanges_frames_come_as_they_were(
    ends: Ends, faults: Faults, kind: str, member: int
) -> None:
    send_both_ways(ends, 0, 2)
    getattr(faults, kind).add(member)
    send_both_ways(ends, 2, 6)
    assert counted(ends.rank, Metric.COLLECTIVE_DROPS) >= 1
    getattr(faults, kind).clear()
    form_again(ends)
    assert link_of(ends.rank).generation > 1
    before = counted(ends.rank, Metric.COLLECTIVE_FRAMES)
    send_both_ways(ends, 8, 3)
    assert counted(ends.rank, Metric.COLLECTIVE_FRAMES) == before + 3


def test_rows_that_do_not_come_are_sent_over_the_base_within_the_limit(
    ends: Ends, faults: Faults
) -> None:
    faults.silent = {1}
    start_s = time.monotonic()
    ends.shard.link.send(numbered(1))
    ends.until(lambda: len(ends.rank.arrived) == 1, "rows that the group lost")
    assert QUICK.exchange_s < time.monotonic() - start_s < 5.0
    assert counted(ends.shard, Metric.COLLECTIVE_RESENT) == 1


def test_a_group_that_cannot_be_built_leaves_the_base_and_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    attempts: list[int] = []

    def refuse(store: LaneStore, member: int, backend: str, place: str) -> Pair:
        attempts.append(member)
        if attempts.count(member) < 3:
            raise RuntimeError("no such interface")
        return open_pair(store, member, backend, place)

    monkeypatch.setattr(negotiation, "open_pair", refuse)
    transport = quick_transport(DEFAULT_MAX_FRAME_BYTES)
    ends = connect_pair(transport, transport.listen(CASE.bind(tmp_path)))
    ends.shard.link.send(Welcome(0, 0, PlacementVersion(0, 0)))
    ends.shard.link.send(numbered(0))
    form_again(ends)
    assert same(ends.rank.arrived[1], numbered(0))
    assert link_of(ends.rank).generation >= 3
    assert counted(ends.rank, Metric.COLLECTIVE_DROPS) == 0
    send_both_ways(ends, 0, 3)
    ends.close()


def test_a_stopped_reader_of_rows_loses_its_link(faults: Faults, tmp_path: Path) -> None:
    ends = connect(CASE, tmp_path, 2**16)

    def flood() -> None:
        for number in range(100):
            ends.rank.link.send(numbered(number, 100))
            ends.rank.turn()

    with pytest.raises(LinkLostError, match="stopped reading"):
        flood()
    ends.close()


def test_groups_and_mutual_tls_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="not encrypted"):
        transport_for("collective+grpc://127.0.0.1:1", TlsFiles("a", "b", "c"))
