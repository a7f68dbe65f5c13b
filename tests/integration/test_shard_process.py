"""Shards as real processes: bit-equal to a shard in this process, and their ends seen in time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cluster.deadline import Deadline
from cluster.errors import LinkLostError, TrinityError
from cluster.transport import transport_for
from cluster.transport.liveness import DEAD_AFTER_S, LinkMonitor
from cluster.transport.poller import Poller
from cluster.transport.session import Session, open_session
from cluster.types import ShardSlice
from cluster.wire import Busy, CallId, ExpertCall, ExpertReply, Frame, Hello
from experts.__main__ import main
from experts.checkpoint import Checkpoint
from experts.config import fingerprint_of
from experts.kernels.reference import ReferenceKernels
from experts.shard import ExpertShard, ShardIdentity
from experts.store import ExpertStore
from tests.contract.transport_cases import PROCESS_BINDS
from tests.support.frames import a_call
from tests.support.shards import ROOT, ShardProcess

NUM_SHARDS = 3
DEADLINE_S = 10.0


class Rank:
    """One end that talks to shard processes by hand."""

    def __init__(self, checkpoint: Path) -> None:
        opened = Checkpoint.open(str(checkpoint))
        self.config = opened.config
        self.fingerprint = fingerprint_of(opened, ReferenceKernels(), self.config.dtype)
        self.poller = Poller()
        self._arrived: deque[Frame | TrinityError] = deque()

    def open(self, address: str) -> Session:
        hello = Hello(self.fingerprint, rank=0, incarnation=1, epoch=1, token="")
        session = open_session(transport_for(address), address, hello, Deadline.after(DEADLINE_S))
        self.poller.add(session.link)
        return session

    def call(self, layer: int, experts: tuple[int, ...], num_tokens: int) -> ExpertCall:
        call_id = CallId(0, 1, step=num_tokens, micro_batch=0, layer=layer, attempt=0)
        width = self.config.hidden_size
        call = a_call(num_tokens, experts, call_id=call_id, width=width, dtype=torch.float32)
        return replace(call, model=self.fingerprint.model)

    def ask(self, session: Session, call: ExpertCall) -> Tensor:
        session.link.send(call)
        reply = self.next_item(DEADLINE_S)
        # A shard that takes its time says so first.
        while isinstance(reply, Busy):
            reply = self.next_item(DEADLINE_S)
        assert isinstance(reply, ExpertReply), reply
        assert reply.call_id == call.call_id
        return reply.rows_ND

    def next_item(self, timeout_s: float) -> Frame | TrinityError:
        deadline = Deadline.after(timeout_s)
        while not self._arrived:
            assert not deadline.expired(), "nothing came"
            self._arrived.extend(item for _, item in self.poller.wait(0.1))
        return self._arrived.popleft()


@pytest.fixture(scope="module")
def rank(tiny_checkpoint: Path) -> Iterator[Rank]:
    rank = Rank(tiny_checkpoint)
    yield rank
    rank.poller.close()


def start_shard(checkpoint: Path, folder: Path, part: str) -> ShardProcess:
    """Start a shard that listens over every transport that leaves the process."""
    listen = [each for bind in PROCESS_BINDS.values() for each in ("--listen", bind(folder))]
    arguments = ("--model", str(checkpoint), "--shard", part, "--kernels", "reference")
    return ShardProcess.start(*arguments, *listen, errors_to=folder / "stderr")


@pytest.fixture(scope="module")
def processes(
    tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[ShardProcess]]:
    """Three shards that together hold every expert."""

    def start(index: int) -> ShardProcess:
        folder = tmp_path_factory.mktemp(f"shard{index}-")
        return start_shard(tiny_checkpoint, folder, f"{index}/{NUM_SHARDS}")

    with ThreadPoolExecutor(NUM_SHARDS) as starting:
        started = list(starting.map(start, range(NUM_SHARDS)))
    yield started
    assert [process.stop() for process in started] == [0] * NUM_SHARDS


def in_process(rank: Rank, checkpoint: Path, index: int) -> ExpertShard:
    store = ExpertStore.empty(rank.config, ReferenceKernels(), rank.config.dtype)
    store.load_slice(Checkpoint.open(str(checkpoint)), ShardSlice(index, NUM_SHARDS))
    return ExpertShard(ShardIdentity(index, 0, rank.fingerprint.model), store)


@pytest.mark.parametrize("transport", PROCESS_BINDS)
def test_rows_of_processes_are_those_of_this_process_bit_for_bit(
    rank: Rank, tiny_checkpoint: Path, processes: list[ShardProcess], transport: str
) -> None:
    for index, process in enumerate(processes):
        session = rank.open(process.addresses[transport])
        shard = in_process(rank, tiny_checkpoint, index)
        experts = tuple(ShardSlice(index, NUM_SHARDS).experts(rank.config.num_experts))
        for layer in range(rank.config.num_moe_layers):
            for num_tokens in (1, 7, 40):
                call = rank.call(layer, experts[layer % 3 :: 2], num_tokens)
                assert torch.equal(rank.ask(session, call), shard.compute([call])[0])
        rank.poller.remove(session.link)
        session.link.close()


def test_a_shard_reads_its_own_slice_only(rank: Rank, processes: list[ShardProcess]) -> None:
    model = rank.config
    expert_bytes = 3 * model.hidden_size * model.moe_intermediate_size * 4
    for index, process in enumerate(processes):
        num_experts = len(ShardSlice(index, NUM_SHARDS).experts(model.num_experts))
        slice_bytes = num_experts * model.num_moe_layers * expert_bytes
        assert process.bytes_read == pytest.approx(slice_bytes, rel=0.02)


def watch(rank: Rank, session: Session, until_s: float) -> LinkLostError:
    """Keep the monitor's rule until it or the link reports a loss."""
    monitor = LinkMonitor(time.monotonic(), session.link.peer)
    deadline = Deadline.after(until_s)
    while not deadline.expired():
        for _, item in rank.poller.wait(0.05):
            if isinstance(item, LinkLostError):
                return item
            assert not isinstance(item, TrinityError)
            monitor.heard(item, time.monotonic())
        try:
            ping = monitor.poll(time.monotonic())
        except LinkLostError as error:
            return error
        if ping is not None:
            session.link.send(ping)
    raise AssertionError(f"no loss within {until_s} s")


@pytest.mark.parametrize("transport", PROCESS_BINDS)
def test_a_stopped_shard_is_lost_by_silence_and_a_killed_one_by_its_end(
    rank: Rank, tiny_checkpoint: Path, tmp_path: Path, transport: str
) -> None:
    with start_shard(tiny_checkpoint, tmp_path, "0/8") as process:
        address = process.addresses[transport]
        session = rank.open(address)
        process.signal(signal.SIGSTOP)
        start_s = time.monotonic()
        watch(rank, session, DEADLINE_S)
        assert time.monotonic() - start_s < DEAD_AFTER_S + 1.0
        rank.poller.remove(session.link)
        session.link.close()

        process.signal(signal.SIGCONT)
        session = rank.open(address)
        process.signal(signal.SIGKILL)
        start_s = time.monotonic()
        assert isinstance(rank.next_item(1.0), LinkLostError)
        assert time.monotonic() - start_s < 1.0
        assert process.stop() == -signal.SIGKILL


def test_a_shard_ends_with_its_parent(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A parent that is killed takes its shard with it; the shard's socket file goes too."""
    program = f"""
import os, subprocess, sys
subprocess.Popen([sys.executable, "-m", "experts", "--model", {str(tiny_checkpoint)!r},
    "--listen", "unix:{tmp_path}/s/socket", "--kernels", "reference",
    "--die-with-parent", str(os.getpid())])
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
    ) as parent:
        assert parent.stdout is not None
        assert b"address" in parent.stdout.readline()
        parent.kill()
        # The shard holds the pipe's other end: it is gone at the end of file.
        os.set_blocking(parent.stdout.fileno(), True)
        assert parent.stdout.read() == b""
    assert not (tmp_path / "s" / "socket").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "/nowhere", "--listen", "unix:/tmp/x"), "/nowhere"),
        (("--model", "CHECKPOINT", "--listen", "carrier-pigeon:x"), "carrier-pigeon"),
        (("--model", "CHECKPOINT", "--listen", "grpc://203.0.113.7:1"), "203.0.113.7:1"),
        (("--model", "CHECKPOINT", "--listen", "unix:/tmp/x", "--shard", "0/99"), "99 shards"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(
    tiny_checkpoint: Path,
    arguments: tuple[str, ...],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [str(tiny_checkpoint) if each == "CHECKPOINT" else each for each in arguments]
    with own_settings():
        assert main(["--kernels", "reference", *given]) == 2
    assert words in capsys.readouterr().err.strip().splitlines()[-1]


@contextlib.contextmanager
def own_settings() -> Iterator[None]:
    """Give back what a program's `main` sets for its whole process."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    handlers = [signal.getsignal(number) for number in numbers]
    num_threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)
