"""A shard's ports under random and mutated frames: it answers or hangs up, and nothing grows.

Against a real process. Each connection, however it began, ends with a ping: the shard has to answer
it or to end the connection, in time. In between a good rank gets its rows as ever.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from cluster.deadline import Deadline
from cluster.errors import LinkLostError
from cluster.model_config import AfmoeConfig
from cluster.transport import transport_for
from cluster.transport.base import Link
from cluster.transport.collective.link import CollectiveLink
from cluster.transport.grpc import GrpcLink
from cluster.transport.local import LocalLink
from cluster.transport.poller import Poller
from cluster.transport.session import open_session
from cluster.types import Fingerprint
from cluster.wire import CallId, ExpertCall, ExpertReply, Hello, Ping, Pong, encode
from experts.checkpoint import Checkpoint
from experts.config import fingerprint_of
from experts.kernels.reference import ReferenceKernels
from tests.contract.transport_cases import DEADLINE_S, PROCESS_BINDS
from tests.support.frames import a_call, about_groups, one_of_each
from tests.support.server import pss_bytes
from tests.support.shards import ShardProcess
from tests.unit.cluster.test_wire import resealed

WARM_UP, CONNECTIONS = 700, 450
MAX_GROWTH_BYTES = 6 << 20
"""Of `CONNECTIONS`, which bring several times as much: what is kept of each would show."""
NONCE = 4711


@dataclass(frozen=True)
class Target:
    """A shard process and who it takes for a rank."""

    process: ShardProcess
    fingerprint: Fingerprint
    config: AfmoeConfig

    @property
    def hello(self) -> Hello:
        return Hello(self.fingerprint, rank=1, incarnation=1, epoch=1, token="")

    def call(self, num_tokens: int = 3) -> ExpertCall:
        call_id = CallId(1, 1, step=1, micro_batch=0, layer=0, attempt=0)
        width = self.config.hidden_size
        call = a_call(num_tokens, (0, 5), call_id=call_id, width=width, dtype=torch.float32)
        return replace(call, model=self.fingerprint.model)


@pytest.fixture(scope="module")
def target(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("shard")
    listen = [each for bind in PROCESS_BINDS.values() for each in ("--listen", bind(folder))]
    arguments = ("--model", str(tiny_checkpoint), "--shard", "0/1", "--kernels", "reference")
    opened = Checkpoint.open(str(tiny_checkpoint))
    fingerprint = fingerprint_of(opened, ReferenceKernels(), opened.config.dtype)
    with ShardProcess.start(*arguments, *listen, errors_to=folder / "stderr") as process:
        yield Target(process, fingerprint, opened.config)


class Fuzzer:
    """Connections that each say something else; the same ones for the same seed."""

    def __init__(self, target: Target, address: str, seed: int) -> None:
        self._random = random.Random(seed)
        self._address = address
        self._hello = target.hello
        # Not the good greeting: who is let in is believed, its epoch too.
        frames = [*one_of_each(), *about_groups(), target.call(1), target.call(40)]
        self._wires = [b"".join(map(bytes, encode(frame))) for frame in frames]

    def run(self, connections: int) -> None:
        for _ in range(connections):
            self._connect_and_talk()

    def _connect_and_talk(self) -> None:
        transport = transport_for(self._address)
        link = transport.connect(self._address, Deadline.after(DEADLINE_S))
        poller = Poller()
        poller.add(link)
        try:
            with suppress(LinkLostError, OSError):
                if self._random.random() < 0.7:
                    link.send(self._hello)
                for _ in range(self._random.randint(1, 6)):
                    send_raw(link, self._bytes())
                link.send(Ping(NONCE))
                end_sending(link)
            await_end(poller)
        finally:
            poller.remove(link)
            poller.close()
            link.close()

    def _bytes(self) -> bytes:
        draw = self._random.random()
        if draw < 0.15:
            return self._random.randbytes(self._random.randint(1, 2000))
        wire = bytearray(self._random.choice(self._wires))
        if draw < 0.25:
            return bytes(wire)
        if draw < 0.4:
            return bytes(wire[: self._random.randint(1, len(wire))])
        for _ in range(self._random.randint(1, 4)):
            at = self._random.randrange(len(wire))
            patch = self._random.randbytes(self._random.randint(1, 8))[: len(wire) - at]
            wire[at : at + len(patch)] = patch
        return bytes(resealed(wire) if draw < 0.9 else wire)


def base_link(link: Link) -> Link:
    """Return what carries a link's frames."""
    return link._base if isinstance(link, CollectiveLink) else link


def send_raw(link: Link, data: bytes) -> None:
    """Send bytes where frames would go."""
    link = base_link(link)
    if isinstance(link, GrpcLink):
        link._outbox.put(data)
        return
    assert isinstance(link, LocalLink)
    link._sock.setblocking(True)
    link._sock.settimeout(DEADLINE_S)
    link._sock.sendall(data)
    link._sock.setblocking(False)


def end_sending(link: Link) -> None:
    """Let a shard that waits for the rest of a frame see that none comes; gRPC has messages."""
    link = base_link(link)
    if isinstance(link, LocalLink):
        link._sock.shutdown(socket.SHUT_WR)


def await_end(poller: Poller) -> None:
    """Wait for the answer to the ping or the connection's end; fail when neither comes in time."""
    deadline = Deadline.after(DEADLINE_S)
    while not deadline.expired():
        for _, item in poller.wait(0.1):
            if isinstance(item, LinkLostError) or item == Pong(NONCE):
                return
    raise AssertionError("the shard neither answered nor hung up")


def ask_well(target: Target, address: str) -> torch.Tensor:
    """Be a good rank; return the rows."""
    transport = transport_for(address)
    session = open_session(transport, address, target.hello, Deadline.after(DEADLINE_S))
    poller = Poller()
    poller.add(session.link)
    session.link.send(target.call())
    deadline = Deadline.after(DEADLINE_S)
    try:
        while not deadline.expired():
            for _, item in poller.wait(0.1):
                if isinstance(item, ExpertReply):
                    return item.rows_ND
        raise AssertionError("a good rank got no rows")
    finally:
        poller.remove(session.link)
        poller.close()
        session.link.close()


def held(pid: int) -> dict[str, int]:
    """Return how many files and threads a process has."""
    return {name: len(list(Path(f"/proc/{pid}/{name}").iterdir())) for name in ("fd", "task")}


def await_held(pid: int, most: dict[str, int]) -> None:
    """Wait until a process has no more than `most` of each."""
    deadline = Deadline.after(DEADLINE_S)
    while any(number > most[name] for name, number in held(pid).items()):
        assert not deadline.expired(), f"{held(pid)} where {most} were enough"


@pytest.mark.parametrize("scheme", PROCESS_BINDS)
def test_whatever_comes_in_nothing_hangs_and_nothing_grows(target: Target, scheme: str) -> None:
    address = target.process.addresses[scheme]
    pid = target.process.process.pid
    rows = ask_well(target, address)
    # Buffers grow to the largest call that came; that takes a while, and is no growth.
    Fuzzer(target, target.process.addresses["unix"], seed=1).run(WARM_UP)
    Fuzzer(target, address, seed=2).run(100)
    ask_well(target, address)
    at_rest, before = held(pid), pss_bytes(pid)
    Fuzzer(target, address, seed=3).run(CONNECTIONS)
    assert torch.equal(ask_well(target, address), rows)
    await_held(pid, at_rest)
    assert pss_bytes(pid) - before < MAX_GROWTH_BYTES
    assert target.process.process.poll() is None


def test_raw_bytes_at_a_grpc_port_are_hung_up_on(target: Target) -> None:
    host, _, port = target.process.addresses["grpc"].removeprefix("grpc://").partition(":")
    numbers = random.Random(3)
    for _ in range(50):
        connection = socket.create_connection((host, int(port)), DEADLINE_S)
        with connection, suppress(ConnectionError):
            connection.sendall(numbers.randbytes(numbers.randint(1, 5000)))
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1 << 16):
                pass
    ask_well(target, target.process.addresses["grpc"])
