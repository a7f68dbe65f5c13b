"""A rank and a shard's loop over every transport: handshake, refusals, garbage, signs of life."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch

from cluster.deadline import Deadline
from cluster.errors import (
    LinkLostError,
    StaleEpochError,
    TrinityError,
    UnauthenticatedError,
    WrongBitClassError,
    WrongModelError,
)
from cluster.model_config import AfmoeConfig
from cluster.transport.base import Transport
from cluster.transport.inproc import InprocListener
from cluster.transport.mailbox import Outbox
from cluster.transport.poller import Poller
from cluster.transport.session import Session, open_session
from cluster.types import Fingerprint, PlacementVersion
from cluster.wire import (
    DEFAULT_MAX_FRAME_BYTES,
    PREAMBLE_BYTES,
    CallError,
    CallId,
    ExpertCall,
    ExpertReply,
    Frame,
    Hello,
    Ping,
    Pong,
    Welcome,
    decode,
    encode,
)
from cluster.wire.decode import frame_bytes
from experts.shard_loop import ShardLoop
from tests.contract.transport_cases import CASES, DEADLINE_S, Case, base_of
from tests.support.frames import a_call
from tests.support.shards import random_shard, reference_fingerprint

TOKEN = "a token"


@dataclass
class Served:
    """A shard that answers at an address."""

    transport: Transport
    address: str
    hello: Hello
    width: int

    def open(self, hello: Hello | None = None) -> Session:
        return open_session(
            self.transport, self.address, hello or self.hello, Deadline.after(DEADLINE_S)
        )

    def ask(self, session: Session, frame: Frame) -> Frame | TrinityError:
        """Send a frame and return what comes back first."""
        poller = Poller()
        poller.add(session.link)
        session.link.send(frame)
        deadline = Deadline.after(DEADLINE_S)
        while not (arrivals := poller.wait(0.1)):
            assert not deadline.expired(), "no answer"
        poller.remove(session.link)
        poller.close()
        return arrivals[0][1]

    def call(self, layer: int = 0, experts: tuple[int, ...] = (0, 5)) -> ExpertCall:
        call_id = CallId(self.hello.rank, self.hello.incarnation, 1, 0, layer, 0)
        call = a_call(3, experts, call_id=call_id, width=self.width, dtype=torch.float32)
        return replace(call, model=self.hello.fingerprint.model)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def served(case: Case, tiny_config: AfmoeConfig, tmp_path: Path) -> Iterator[Served]:
    """A shard with experts 0 to 7 of every layer."""
    transport = case.make(DEFAULT_MAX_FRAME_BYTES)
    listener = transport.listen(case.bind(tmp_path))
    fingerprint = reference_fingerprint(tiny_config)
    loop = ShardLoop(random_shard(tiny_config, range(8), 3), listener, fingerprint, TOKEN)
    hello = Hello(fingerprint, rank=1, incarnation=5, epoch=4, token=TOKEN)
    with running(loop, listener):
        yield Served(transport, listener.address, hello, tiny_config.hidden_size)
    loop.close()
    listener.close()


@contextlib.contextmanager
def running(loop: ShardLoop, listener: object) -> Iterator[None]:
    """Run the loop: by its ranks when in process, else on a thread."""
    if isinstance(listener, InprocListener):
        listener.pump = lambda: loop.run_once(0.0)
        yield
        return
    stopping = threading.Event()

    def serve() -> None:
        while not stopping.is_set():
            loop.run_once(0.1)

    thread = threading.Thread(target=serve)
    thread.start()
    yield
    stopping.set()
    loop.wake()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()


def test_a_rank_that_fits_is_welcomed_by_name(served: Served) -> None:
    session = served.open()
    assert (session.welcome.shard_id, session.welcome.incarnation) == (3, 77)
    assert session.welcome.placement_version == PlacementVersion(1, 2)
    session.link.close()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"token": "another"}, UnauthenticatedError, "token"),
        ({"token": ""}, UnauthenticatedError, "token"),
        ({"fingerprint": Fingerprint(b"another model 16", "x")}, WrongModelError, "model"),
        ({"epoch": 3}, StaleEpochError, "epoch 3, not 4"),
    ],
)
def test_a_rank_that_does_not_fit_is_told_why(
    served: Served, change: dict[str, object], error: type[TrinityError], words: str
) -> None:
    accepted = served.open()
    with pytest.raises(error, match=words):
        served.open(replace(served.hello, **change))  # type: ignore[arg-type]
    assert isinstance(served.ask(accepted, served.call()), ExpertReply)
    accepted.link.close()


def test_another_bit_class_is_refused_naming_both(served: Served) -> None:
    other = replace(served.hello.fingerprint, bit_class="cuda/sm_90/1")
    with pytest.raises(WrongBitClassError, match=r"reference/torch.*cuda/sm_90/1"):
        served.open(replace(served.hello, fingerprint=other))


def test_a_call_is_answered_in_compute_dtype_with_its_identity(served: Served) -> None:
    session = served.open()
    call = served.call(layer=2)
    reply = served.ask(session, call)
    assert isinstance(reply, ExpertReply)
    assert (reply.call_id, reply.shard_incarnation) == (call.call_id, 77)
    assert reply.rows_ND.shape == (6, served.width)
    assert reply.rows_ND.dtype == torch.float32
    session.link.close()


def test_an_expert_that_is_not_held_is_named_with_the_placement(served: Served) -> None:
    session = served.open()
    error = served.ask(session, served.call(experts=(1, 9)))
    assert isinstance(error, CallError)
    assert error.code == "expert_not_held"
    assert "[9]" in error.message
    assert error.placement_version == PlacementVersion(1, 2)
    session.link.close()


def test_calls_that_do_not_fit_the_model_get_an_error_and_the_shard_lives(served: Served) -> None:
    session = served.open()
    wide = replace(served.call(), hidden_TD=torch.zeros(3, served.width + 8))
    half = replace(served.call(), hidden_TD=served.call().hidden_TD.bfloat16())
    for call, code in (
        (served.call(layer=400), "malformed_frame"),
        (wide, "malformed_frame"),
        (half, "wrong_bit_class"),
        (replace(served.call(), model=b"another model 16"), "wrong_model"),
    ):
        error = served.ask(session, call)
        assert isinstance(error, CallError)
        assert error.code == code
    assert isinstance(served.ask(session, served.call()), ExpertReply)
    session.link.close()


def test_a_call_before_the_handshake_is_not_computed(served: Served) -> None:
    link = served.transport.connect(served.address, Deadline.after(DEADLINE_S))
    session = Session(link, welcome=None)  # type: ignore[arg-type]
    error = served.ask(session, served.call())
    assert isinstance(error, CallError)
    assert error.code == "unauthenticated"
    link.close()


def test_the_compute_loop_answers_pings(served: Served) -> None:
    session = served.open()
    assert served.ask(session, Ping(41)) == Pong(41)
    session.link.close()


def test_a_header_without_rows_gets_no_answer(served: Served) -> None:
    session = served.open()
    header = replace(
        served.call(),
        expert_ids_G=np.empty(0, np.int32),
        row_offsets_G1=np.zeros(1, np.int32),
        token_idx_N=np.empty(0, np.int32),
        hidden_TD=torch.empty(0, served.width),
    )
    session.link.send(header)
    assert served.ask(session, Ping(1)) == Pong(1)
    session.link.close()


def test_a_rank_that_vanishes_leaves_the_others(served: Served) -> None:
    gone, left = served.open(), served.open(replace(served.hello, rank=2))
    gone.link.send(served.call())
    gone.link.close()
    call = replace(served.call(), call_id=served.call().call_id._replace(rank=2))
    assert isinstance(served.ask(left, call), ExpertReply)
    left.link.close()


def test_garbage_on_the_socket_leaves_the_shard_to_others(case: Case, served: Served) -> None:
    if not case.has_bytes:
        pytest.skip("frames go by reference here")
    session = served.open()
    for garbage in (b"\0" * 100, b"GET / HTTP/1.1\r\n\r\n", b"TRNW" + b"\xff" * 60):
        raw = raw_socket(served.address)
        raw.sendall(garbage)
        assert isinstance(served.ask(session, served.call()), ExpertReply)
        raw.close()
    assert isinstance(served.ask(session, served.call()), ExpertReply)
    session.link.close()


def test_a_damaged_frame_is_refused_by_name_and_its_link_lives(case: Case, served: Served) -> None:
    if not case.has_bytes:
        pytest.skip("frames go by reference here")
    hello = b"".join(encode(served.hello))
    damaged, newer = bytearray(hello), bytearray(hello)
    damaged[-1] ^= 1
    newer[4] = 9
    answers = speak_raw(served.address, [bytes(damaged), bytes(newer), hello])
    assert [getattr(answer, "code", "") for answer in answers] == [
        "checksum_mismatch",
        "wrong_protocol_version",
        "",
    ]
    assert isinstance(answers[2], Welcome)


def speak_raw(address: str, messages: list[bytes]) -> list[Frame]:
    """Send bytes as they are; return one answer for each."""
    address = base_of(address)
    if address.startswith("grpc:"):
        outbox = Outbox()
        for message in messages:
            outbox.put(message)
        with grpc.insecure_channel(address.removeprefix("grpc://")) as channel:
            stream_stream = channel.stream_stream("/trinity.Experts/Link")
            call = stream_stream(iter(outbox), timeout=DEADLINE_S)
            answers = [decode(next(call)) for _ in messages]
            outbox.end()
            return answers
    with raw_socket(address) as raw:
        raw.sendall(b"".join(messages))
        stream = raw.makefile("rb")
        answers = []
        for _ in messages:
            preamble = stream.read(PREAMBLE_BYTES)
            rest = stream.read(frame_bytes(preamble) - PREAMBLE_BYTES)
            answers.append(decode(preamble + rest))
        return answers


def raw_socket(address: str) -> socket.socket:
    address = base_of(address)
    if address.startswith("unix:"):
        raw = socket.socket(socket.AF_UNIX)
        raw.settimeout(DEADLINE_S)
        raw.connect(address.removeprefix("unix:"))
        return raw
    host, _, port = address.removeprefix("grpc://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=DEADLINE_S)


def test_nobody_answering_the_handshake_is_a_lost_link_at_the_deadline(
    case: Case, tmp_path: Path, tiny_config: AfmoeConfig
) -> None:
    transport = case.make(DEFAULT_MAX_FRAME_BYTES)
    listener = transport.listen(case.bind(tmp_path))
    hello = Hello(reference_fingerprint(tiny_config), 0, 0, 0, "")
    start_s = time.monotonic()
    with pytest.raises(LinkLostError, match="handshake"):
        open_session(transport, listener.address, hello, Deadline.after(0.3))
    assert time.monotonic() - start_s < 2.0
    listener.close()
