"""Unix stream sockets between processes of one host, in a folder that only their user can enter.

Frames follow each other on the stream; the preamble says where each ends. Nothing is joined on
sending (`sendmsg`) and nothing is copied on receiving: see `FrameReader`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
from collections import deque
from pathlib import Path

from cluster.deadline import Deadline
from cluster.errors import LinkLostError
from cluster.tls import TlsFiles
from cluster.transport.base import Link, Listener, Transport
from cluster.transport.frame_reader import FrameReader
from cluster.wire import DEFAULT_MAX_FRAME_BYTES, Buffer, Frame, encode, encoded_bytes
from cluster.wire.decode import check_frame_size

_UCRED = struct.Struct("3i")
_SOCKET_BUFFER_BYTES = 2**20
_MAX_PATH_BYTES = 107
_BACKLOG = 128


class LocalLink(Link):
    """One end of a connected Unix socket."""

    def __init__(self, sock: socket.socket, peer: str, max_frame_bytes: int) -> None:
        sock.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER_BYTES)
        self.peer = peer
        self._sock = sock
        self._max_frame_bytes = max_frame_bytes
        self._reader = FrameReader(sock, peer, max_frame_bytes)
        self._outbox: deque[memoryview] = deque()
        self._outbox_bytes = 0
        self._lost = ""

    def send(self, frame: Frame) -> None:
        """See `Link.send`. Up to two of the largest frames may wait for a slow reader."""
        if self._lost:
            raise LinkLostError(self.peer, self._lost)
        buffers = encode(frame)
        size = encoded_bytes(buffers)
        check_frame_size(size, self._max_frame_bytes)
        if self._outbox:
            if self._outbox_bytes + size > 2 * self._max_frame_bytes:
                raise LinkLostError(self.peer, f"stopped reading; {self._outbox_bytes} bytes wait")
            self._queue(buffers, 0)
            return
        sent = self._write(buffers)
        if sent < size:
            self._queue(buffers, sent)

    def _write(self, buffers: list[Buffer] | list[memoryview]) -> int:
        try:
            return self._sock.sendmsg(buffers)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._lost = error.strerror or "broken"
            raise LinkLostError(self.peer, self._lost) from error

    def _queue(self, buffers: list[Buffer], sent: int) -> None:
        for buffer in buffers:
            rest = memoryview(buffer)[sent:]
            sent = max(0, sent - len(buffer))
            if rest:
                self._outbox.append(rest)
                self._outbox_bytes += len(rest)

    def _flush(self) -> None:
        while self._outbox:
            sent = self._write(list(self._outbox)[:64])
            if sent == 0:
                return
            self._outbox_bytes -= sent
            while sent:
                first = self._outbox.popleft()
                if sent < len(first):
                    self._outbox.appendleft(first[sent:])
                    return
                sent -= len(first)

    def receive(self) -> Frame | None:
        """See `Link.receive`."""
        if self._outbox:
            # What has arrived is worth reading even when nothing can be sent any more.
            with contextlib.suppress(LinkLostError):
                self._flush()
        if self._sock.fileno() < 0:
            raise LinkLostError(self.peer, "closed")
        return self._reader.next_frame()

    def fileno(self) -> int:
        """The socket's."""
        return self._sock.fileno()

    @property
    def ready(self) -> bool:
        """Whether a whole frame has been read already."""
        return self._reader.has_frame

    @property
    def wants_write(self) -> bool:
        """Whether bytes wait for the reader."""
        return bool(self._outbox) and not self._lost

    def close(self) -> None:
        """See `Link.close`."""
        self._lost = "closed"
        self._outbox.clear()
        self._sock.close()


class LocalListener(Listener):
    """Listens at a path, for processes of the same user."""

    def __init__(self, path: str, max_frame_bytes: int) -> None:
        self.address = f"unix:{path}"
        self._path = path
        self._max_frame_bytes = max_frame_bytes
        _check_folder(Path(path).parent)
        _remove_stale(path)
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.setblocking(False)
        self._sock.bind(path)
        self._inode = os.stat(path).st_ino
        self._sock.listen(_BACKLOG)

    def accept(self) -> LocalLink | None:
        """See `Listener.accept`. A process of another user is turned away."""
        while True:
            try:
                sock, _ = self._sock.accept()
            except OSError:
                return None
            credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
            pid, uid, _ = _UCRED.unpack(credentials)
            if uid == os.geteuid():
                peer = f"rank in process {pid} at {self.address}"
                return LocalLink(sock, peer, self._max_frame_bytes)
            sock.close()

    def fileno(self) -> int:
        """The listening socket's."""
        return self._sock.fileno()

    def close(self) -> None:
        """Stop listening and remove the socket file, if it is still ours."""
        if self._sock.fileno() < 0:
            return
        self._sock.close()
        with contextlib.suppress(FileNotFoundError):
            if os.stat(self._path).st_ino == self._inode:
                os.unlink(self._path)


def _check_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        raise PermissionError(
            f"{folder} is of user {found.st_uid} with mode {mode:04o}; a socket needs a folder of "
            f"user {os.geteuid()} with mode 0700"
        )


def _remove_stale(path: str) -> None:
    """Remove the socket file of a process that is gone. Raises OSError when it is in use."""
    if len(os.fsencode(path)) > _MAX_PATH_BYTES:
        raise OSError(f"{path} is longer than the {_MAX_PATH_BYTES} bytes a socket's path may have")
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise FileExistsError(f"{path} exists and is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass
    raise OSError(f"{path} is in use by another process")


class LocalTransport(Transport):
    """Addresses are ``unix:/folder/socket``."""

    scheme = "unix"

    def __init__(self, max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES) -> None:
        self._max_frame_bytes = max_frame_bytes

    def listen(self, bind: str) -> LocalListener:
        """See `Transport.listen`. Makes the folder (mode 0700) when it is not there."""
        return LocalListener(bind.removeprefix("unix:"), self._max_frame_bytes)

    def connect(self, address: str, deadline: Deadline) -> LocalLink:
        """See `Transport.connect`."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(max(0.001, deadline.remaining_s()))
        peer = f"shard at {address}"
        try:
            sock.connect(address.removeprefix("unix:"))
        except OSError as error:
            sock.close()
            raise LinkLostError(peer, error.strerror or "cannot be reached in time") from error
        return LocalLink(sock, peer, self._max_frame_bytes)


def open_transport(tls: TlsFiles | None) -> LocalTransport:
    """Registry entry. The kernel carries the bytes and the folder's mode guards them: no TLS."""
    del tls
    return LocalTransport()
