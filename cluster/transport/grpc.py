"""gRPC between hosts: one bidirectional stream of raw frames per link, without protobuf.

gRPC's own threads take frames from an outbox and put messages into an inbox; an eventfd makes the
inbox look like a socket to the poller. gRPC takes only `bytes`: one copy on sending, none on
receiving. Keep-alive finds a lost host; a hung compute loop is for the pings above this.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent import futures
from threading import Event, Thread
from typing import Any, Final, TypeVar

import grpc

from cluster.deadline import Deadline
from cluster.errors import LinkLostError
from cluster.tls import Reloaded, TlsFiles
from cluster.transport.base import Link, Listener, Transport
from cluster.transport.mailbox import Doorbell, Inbox, Outbox
from cluster.wire import DEFAULT_MAX_FRAME_BYTES, Frame, decode, encode, encoded_bytes
from cluster.wire.decode import check_frame_size

T = TypeVar("T")
_METHOD: Final = "/trinity.Experts/Link"
_MAX_LINKS: Final = 256
_STOP_GRACE_S: Final = 0.2
# A frame over our bound is refused with the link alive; one over twice the bound ends the stream.
_SLACK: Final = 2

_Options = list[tuple[str, int]]
# grpcio ships no types: its calls, contexts and credentials are opaque here.
_Opaque = Any


def _options(max_frame_bytes: int) -> _Options:
    return [
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", min(_SLACK * max_frame_bytes, 2**31 - 1)),
        # Without these a link that has gone silent is never noticed; with them in about 1.2 s.
        ("grpc.keepalive_time_ms", 1000),
        ("grpc.keepalive_timeout_ms", 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]


def _client_options(max_frame_bytes: int) -> _Options:
    return [
        *_options(max_frame_bytes),
        # A connection of its own per link: a new one never inherits an old one's back-off.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
        ("grpc.enable_retries", 0),
    ]


def _server_options(max_frame_bytes: int) -> _Options:
    return [
        *_options(max_frame_bytes),
        ("grpc.http2.min_ping_interval_without_data_ms", 500),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.so_reuseport", 0),
    ]


class GrpcLink(Link):
    """One end of one stream. The owner's thread calls all but `run`, `outgoing` and `end`."""

    def __init__(self, peer: str, max_frame_bytes: int) -> None:
        self.peer = peer
        self._max_frame_bytes = max_frame_bytes
        self._inbox = Inbox(2 * max_frame_bytes)
        self._outbox = Outbox()
        self._hang_up: Callable[[], object] = lambda: None
        self._closed = False

    def send(self, frame: Frame) -> None:
        """See `Link.send`. Up to two of the largest frames may wait for a slow reader."""
        reason = self._inbox.ended
        if self._closed or reason:
            raise LinkLostError(self.peer, reason or "closed")
        buffers = encode(frame)
        size = encoded_bytes(buffers)
        check_frame_size(size, self._max_frame_bytes)
        waiting = self._outbox.num_bytes
        if waiting and waiting + size > 2 * self._max_frame_bytes:
            raise LinkLostError(self.peer, f"stopped reading; {waiting} bytes wait")
        self._outbox.put(b"".join(buffers))

    def receive(self) -> Frame | None:
        """See `Link.receive`."""
        if self._closed:
            raise LinkLostError(self.peer, "closed")
        message = self._inbox.take()
        if message is not None:
            return decode(message, self._max_frame_bytes)
        if self._inbox.ended and self._inbox.empty:
            raise LinkLostError(self.peer, self._inbox.ended)
        return None

    def fileno(self) -> int:
        """The inbox's eventfd."""
        return self._inbox.fileno()

    @property
    def ready(self) -> bool:
        """Never: the eventfd says it all."""
        return False

    def close(self) -> None:
        """See `Link.close`."""
        if self._closed:
            return
        self._closed = True
        stuck = self._outbox.num_bytes > self._max_frame_bytes
        self._outbox.end()
        self._inbox.close()
        if stuck:
            self._hang_up()

    def outgoing(self) -> Iterator[bytes]:
        """Frames for gRPC to send, until the link is closed."""
        return iter(self._outbox)

    def run(self, messages: Iterator[bytes], hang_up: Callable[[], object]) -> None:
        """Put messages into the inbox until the stream ends; runs on a thread of its own."""
        self._hang_up = hang_up
        reason = "closed the connection"
        try:
            for message in messages:
                if not self._inbox.put(message):
                    break
        except grpc.RpcError as error:
            reason = _reason(error)
        self.end(reason)

    def end(self, reason: str) -> None:
        """Note that the stream is over; from any thread."""
        self._inbox.end(reason)
        self._outbox.end()


def _reason(error: grpc.RpcError) -> str:
    if not isinstance(error, grpc.Call):
        return "the stream was cancelled"
    return f"{error.code().name}: {error.details()}"


class _ThreadPerStream(futures.Executor):
    """gRPC asks for an executor: a stream holds its thread for as long as it lives.

    Daemon threads, so that a process that ends without closing its listener does end.
    """

    def submit(self, fn: Callable[..., T], /, *args: object, **kwargs: object) -> futures.Future[T]:
        future: futures.Future[T] = futures.Future()

        def run() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except Exception as error:  # what an executor owes its future
                future.set_exception(error)

        Thread(target=run, name="grpc-stream", daemon=True).start()
        return future


class _Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Turns each incoming stream into a link."""

    def __init__(self, serve: Callable[[Iterator[bytes], _Opaque], Iterator[bytes]]) -> None:
        self._method = grpc.stream_stream_rpc_method_handler(serve)

    def service(self, details: _Opaque) -> _Opaque:
        return self._method if details.method == _METHOD else None


class GrpcListener(Listener):
    """A gRPC server whose streams come out of `accept`."""

    def __init__(self, bind: str, max_frame_bytes: int, credentials: _Opaque | None) -> None:
        host_port = bind.removeprefix("grpc://")
        self._max_frame_bytes = max_frame_bytes
        self._new: deque[GrpcLink] = deque()
        self._doorbell = Doorbell()
        self._server = grpc.server(
            _ThreadPerStream(),
            handlers=(_Handler(self._serve),),
            options=_server_options(max_frame_bytes),
            maximum_concurrent_rpcs=_MAX_LINKS,
        )
        try:
            port = (
                self._server.add_secure_port(host_port, credentials)
                if credentials is not None
                else self._server.add_insecure_port(host_port)
            )
        except RuntimeError as error:
            self._doorbell.close()
            raise OSError(f"{bind} cannot be listened on: {error}") from error
        self.address = f"grpc://{host_port.rpartition(':')[0]}:{port}"
        self._server.start()

    def _serve(self, messages: Iterator[bytes], context: _Opaque) -> Iterator[bytes]:
        # The client takes these for the sign that its stream has been accepted.
        context.send_initial_metadata(())
        link = GrpcLink(f"rank at {context.peer()}", self._max_frame_bytes)
        context.add_callback(lambda: link.end("closed the connection"))
        Thread(
            target=link.run, args=(messages, context.cancel), name="grpc-receive", daemon=True
        ).start()
        self._new.append(link)
        self._doorbell.ring()
        return link.outgoing()

    def accept(self) -> GrpcLink | None:
        """See `Listener.accept`."""
        if not self._new:
            self._doorbell.quiet()
        return self._new.popleft() if self._new else None

    def fileno(self) -> int:
        """The eventfd of new links."""
        return self._doorbell.fileno()

    def close(self) -> None:
        """Stop the server; its links end."""
        self._server.stop(_STOP_GRACE_S).wait(2 * _STOP_GRACE_S)
        self._doorbell.close()


class GrpcTransport(Transport):
    """Addresses are ``grpc://host:port``; port 0 listens on a free one."""

    scheme = "grpc"

    def __init__(
        self, tls: TlsFiles | None = None, max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES
    ) -> None:
        self._tls = tls
        self._max_frame_bytes = max_frame_bytes

    def listen(self, bind: str) -> GrpcListener:
        """See `Transport.listen`."""
        credentials = None
        if self._tls is not None:
            credentials = _server_credentials(self._tls)
        return GrpcListener(bind, self._max_frame_bytes, credentials)

    def connect(self, address: str, deadline: Deadline) -> GrpcLink:
        """See `Transport.connect`."""
        link = GrpcLink(f"shard at {address}", self._max_frame_bytes)
        channel = self._channel(address.removeprefix("grpc://"))
        call = channel.stream_stream(_METHOD)(link.outgoing())
        accepted = Event()

        def receive() -> None:
            with contextlib.suppress(grpc.RpcError):
                call.initial_metadata()
            accepted.set()
            link.run(call, call.cancel)
            channel.close()

        Thread(target=receive, name="grpc-receive", daemon=True).start()
        if not accepted.wait(deadline.remaining_s()):
            call.cancel()
            link.close()
            raise LinkLostError(link.peer, f"cannot be reached within {deadline.budget_s:g} s")
        if call.done() and call.code() is not grpc.StatusCode.OK:
            link.close()
            raise LinkLostError(link.peer, f"{call.code().name}: {call.details()}")
        return link

    def _channel(self, target: str) -> _Opaque:
        options = _client_options(self._max_frame_bytes)
        if self._tls is None:
            return grpc.insecure_channel(target, options)
        return grpc.secure_channel(target, grpc.ssl_channel_credentials(*self._tls.read()), options)


def _server_credentials(tls: TlsFiles) -> _Opaque:
    """Return credentials that follow the files: gRPC asks at each handshake."""

    def load() -> _Opaque:
        ca, key, cert = tls.read()
        return grpc.ssl_server_certificate_configuration([(key, cert)], ca)

    reloaded = Reloaded(tls.names, load)
    return grpc.dynamic_ssl_server_credentials(
        reloaded.get(), reloaded.get, require_client_authentication=True
    )


def open_transport(tls: TlsFiles | None) -> GrpcTransport:
    """Registry entry."""
    return GrpcTransport(tls)
