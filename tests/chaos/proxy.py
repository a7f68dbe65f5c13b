"""A proxy between a rank and a shard that spoils what the shard answers, by a seed.

    with FaultProxy("unix:/folder/in", "unix:/folder/shard", Faults((Fault.NAN,)), seed=7) as proxy:
        ...                     # ranks connect to `proxy.address`
        proxy.faults = CALM     # from now on everything passes
        proxy.injected          # how often each fault was done

On a Unix socket whole frames are seen, so that all faults can be done; on TCP (`grpc://`) only
bytes are, and `BYTE_FAULTS` can. What ranks send passes untouched. One thread per direction of a
connection; no fault outlives `close`.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from threading import Event, Lock, Thread

from cluster.wire import PREAMBLE_BYTES, ExpertReply, decode, encode
from cluster.wire.decode import frame_bytes
from cluster.wire.layout import KIND_REPLY

_KIND_AT = 6
_CHUNK_BYTES = 2**16
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Fault(StrEnum):
    """What can befall a reply, or the connection that it comes on."""

    CORRUPT = "corrupt"
    """One byte is another."""
    TRUNCATE = "truncate"
    """The second half is missing; what follows stands in its place."""
    DUPLICATE = "duplicate"
    REORDER = "reorder"
    """It comes after the frame that follows it."""
    NAN = "nan"
    """Its last row holds NaN, under a right checksum."""
    DELAY = "delay"
    RESET = "reset"
    HALF_OPEN = "half_open"
    """Nothing comes through any more, in either direction, and nobody is told."""


BYTE_FAULTS = frozenset({Fault.DELAY, Fault.RESET, Fault.HALF_OPEN})


@dataclass(frozen=True)
class Faults:
    """Which faults, and of how many replies (on TCP: of chunks): `share`, at most `most` in all.

    The first `skip` replies of the proxy's life pass.
    """

    kinds: tuple[Fault, ...] = ()
    share: float = 0.05
    most: int | None = None
    skip: int = 0
    delay_s: float = 0.2


CALM = Faults()


class FaultProxy:
    """Listens at `listen` (``unix:/path`` or ``grpc://127.0.0.1:0``) and connects to `target`."""

    def __init__(self, listen: str, target: str, faults: Faults, seed: int) -> None:
        self.faults = faults
        self.injected: Counter[Fault] = Counter()
        """Read by any thread."""
        self._whole_frames = target.startswith("unix:")
        if not self._whole_frames and not BYTE_FAULTS.issuperset(faults.kinds):
            raise ValueError(f"on TCP only {sorted(BYTE_FAULTS)} can be done, not {faults.kinds}")
        self._target = target
        self._random = random.Random(seed)
        self._num_replies = 0
        self._lock = Lock()  # guards the two above and the count of faults
        self._closing = Event()
        self._sockets: set[socket.socket] = set()
        self._threads: list[Thread] = []
        self._listener, self.address = _listen(listen)
        self._start(self._accept)

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Break every connection and stop listening."""
        self._closing.set()
        _hang_up(self._listener)
        for sock in list(self._sockets):
            _hang_up(sock)
        for thread in self._threads:
            thread.join(5.0)
        if self.address.startswith("unix:"):
            Path(self.address.removeprefix("unix:")).unlink(missing_ok=True)

    def _start(self, deed: Callable[[], None]) -> None:
        thread = Thread(target=deed, name="fault-proxy", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                rank, _ = self._listener.accept()
            except OSError:
                return
            try:
                shard = _connect(self._target)
            except OSError:
                rank.close()
                continue
            self._sockets |= {rank, shard}
            for sock in (rank, shard):
                if sock.family == socket.AF_INET:
                    # Small writes in both directions: each would wait 40 ms for the one before.
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            dead = Event()
            self._start(partial(self._pump_calls, rank, shard, dead))
            self._start(partial(self._pump_replies, rank, shard, dead))

    def _pump_calls(self, rank: socket.socket, shard: socket.socket, dead: Event) -> None:
        """Carry bytes to the shard until either end is gone; swallow them once half-open."""
        with contextlib.suppress(OSError):
            while data := rank.recv(_CHUNK_BYTES):
                if not dead.is_set():
                    shard.sendall(data)
        self._end(rank, shard)

    def _pump_replies(self, rank: socket.socket, shard: socket.socket, dead: Event) -> None:
        held: list[bytes] = []
        """Frames that the next one overtakes."""
        with contextlib.suppress(OSError, _Reset):
            for data in _frames(shard) if self._whole_frames else _chunks(shard):
                if dead.is_set():
                    continue
                fault = self._choose(data)
                if fault is Fault.HALF_OPEN:
                    dead.set()
                elif fault is Fault.REORDER:
                    held.append(data)
                else:
                    rank.sendall(self._spoil(data, fault, rank) + b"".join(held))
                    held.clear()
        if not dead.is_set():
            self._end(rank, shard)

    def _choose(self, data: bytes) -> Fault | None:
        faults = self.faults
        if not faults.kinds or (self._whole_frames and data[_KIND_AT] != KIND_REPLY):
            return None
        with self._lock:
            self._num_replies += 1
            spent = faults.most is not None and self.injected.total() >= faults.most
            if spent or self._num_replies <= faults.skip or self._random.random() >= faults.share:
                return None
            fault = self._random.choice(faults.kinds)
            self.injected[fault] += 1
            return fault

    def _spoil(self, data: bytes, fault: Fault | None, rank: socket.socket) -> bytes:
        if fault is Fault.CORRUPT:
            with self._lock:
                at = self._random.randrange(PREAMBLE_BYTES, len(data))
            return data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :]
        if fault is Fault.TRUNCATE:
            return data[: len(data) // 2]
        if fault is Fault.DUPLICATE:
            return data + data
        if fault is Fault.NAN:
            return _with_nan(data)
        if fault is Fault.DELAY:
            self._closing.wait(self.faults.delay_s)
        elif fault is Fault.RESET:
            if rank.family == socket.AF_INET:
                rank.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            raise _Reset
        return data

    def _end(self, *sockets: socket.socket) -> None:
        for sock in sockets:
            _hang_up(sock)
            self._sockets.discard(sock)


class _Reset(Exception):
    """The connection is to be broken."""


def _with_nan(data: bytes) -> bytes:
    frame = decode(data)
    assert isinstance(frame, ExpertReply)
    rows_ND = frame.rows_ND.clone()
    rows_ND[-1, 0] = float("nan")
    return b"".join(bytes(part) for part in encode(replace(frame, rows_ND=rows_ND)))


def _frames(sock: socket.socket) -> Iterable[bytes]:
    with sock.makefile("rb") as stream:
        while len(preamble := stream.read(PREAMBLE_BYTES)) == PREAMBLE_BYTES:
            yield preamble + stream.read(frame_bytes(preamble) - PREAMBLE_BYTES)


def _chunks(sock: socket.socket) -> Iterable[bytes]:
    while data := sock.recv(_CHUNK_BYTES):
        yield data


def _hang_up(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        # Also ends the other thread's wait, which `close` alone does not.
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()


def _listen(address: str) -> tuple[socket.socket, str]:
    if address.startswith("unix:"):
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(address.removeprefix("unix:"))
        listener.listen()
        return listener, address
    host, _, port = address.removeprefix("grpc://").rpartition(":")
    listener = socket.create_server((host, int(port)))
    return listener, f"grpc://{host}:{listener.getsockname()[1]}"


def _connect(address: str) -> socket.socket:
    if address.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(address.removeprefix("unix:"))
        return sock
    host, _, port = address.removeprefix("grpc://").rpartition(":")
    return socket.create_connection((host, int(port)))
