"""A world of shards with its own time: every link, reply and failure is played by the test.

No test that uses it waits: when a rank waits and nothing has come, time jumps to what is next.
Rows of the fake experts are exact in float32: hidden * (1 + expert) + layer.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from cluster.deadline import Deadline
from cluster.errors import LinkLostError, TrinityError, WireError
from cluster.metrics import Metrics
from cluster.placement import IntArray, Placement, ShardInfo
from cluster.transport.base import Link
from cluster.transport.poller import Arrival, Poller
from cluster.transport.session import Session
from cluster.types import PlacementVersion, ShardId
from cluster.wire import CallError, ExpertCall, ExpertReply, Frame, Ping, Pong, Welcome
from router.config import DispatchConfig
from router.dispatcher import Dispatcher
from router.links import ShardLinks
from router.plan import Int64
from router.sender import RankIdentity

VERSION = PlacementVersion(1, 1)
IDENTITY = RankIdentity(rank=0, incarnation=5, model=b"sixteen bytes ok")
REPLY_S = 0.001
P = ParamSpec("P")
T = TypeVar("T")


def expert_rows(call: ExpertCall) -> Tensor:
    """Return what the experts answer to a call."""
    expert_N = np.repeat(call.expert_ids_G, np.diff(call.row_offsets_G1))
    factor_N = torch.from_numpy(1.0 + expert_N).to(torch.float32)
    hidden_ND = call.hidden_TD[torch.from_numpy(call.token_idx_N).long()].float()
    return (hidden_ND * factor_N[:, None] + call.call_id.layer).to(call.hidden_TD.dtype)


def wanted_rows(hidden_TD: Tensor, topk_ids_TK: Int64, layer: int) -> Tensor:
    """Return (T, K, D): what must come back, computed where the router cannot spoil it."""
    factor_TK1 = (1.0 + torch.from_numpy(topk_ids_TK)).float()[:, :, None]
    return (hidden_TD.float()[:, None, :] * factor_TK1 + layer).to(hidden_TD.dtype)


class FakeLink(Link):
    """The rank's end of a link into the world."""

    def __init__(self, shard: FakeShard) -> None:
        self.peer = f"shard {shard.shard_id}"
        self.shard = shard
        self.closed = False
        self.inbox: deque[Frame | TrinityError] = deque()

    def send(self, frame: Frame) -> None:
        """Let the shard hear it."""
        if self.closed or not self.shard.reachable:
            raise LinkLostError(self.peer, "closed")
        self.shard.hear(self, frame)

    def receive(self) -> Frame | None:
        """Return or raise what is next."""
        if not self.inbox:
            return None
        item = self.inbox.popleft()
        if isinstance(item, TrinityError):
            raise item
        return item

    def fileno(self) -> int:
        """No descriptor."""
        return -1

    @property
    def ready(self) -> bool:
        """Whether something has arrived."""
        return bool(self.inbox)

    def close(self) -> None:
        """Close: what still comes is lost."""
        self.closed = True
        self.inbox.clear()


Answer = Callable[[FakeLink, ExpertCall], None]


@dataclass
class FakeShard:
    """One life of a shard. `answers` are used up first, one per call with rows."""

    world: World
    shard_id: int
    incarnation: int
    reachable: bool = True
    silent: bool = False
    """Takes frames and says nothing, not even to a ping."""
    answers: deque[Answer] = field(default_factory=deque)
    answer_always: Answer | None = None
    calls: list[ExpertCall] = field(default_factory=list)
    links: list[FakeLink] = field(default_factory=list)

    @property
    def info(self) -> ShardInfo:
        """Return how a placement names it."""
        return ShardInfo(ShardId(self.shard_id), f"fake:{self.shard_id}", self.incarnation)

    def hear(self, link: FakeLink, frame: Frame) -> None:
        """Answer a frame as told."""
        if isinstance(frame, ExpertCall):
            self.calls.append(frame)
        if self.silent:
            return
        if isinstance(frame, Ping):
            link.inbox.append(Pong(frame.nonce))
        elif isinstance(frame, ExpertCall) and len(frame.expert_ids_G):
            default = self.answer_always or self.reply
            (self.answers.popleft() if self.answers else default)(link, frame)

    def reply(self, link: FakeLink, call: ExpertCall, after_s: float = REPLY_S) -> None:
        """Answer as a healthy shard does."""
        self.say(link, self.good_reply(call), after_s)

    def good_reply(self, call: ExpertCall) -> ExpertReply:
        """Return the right answer."""
        return ExpertReply(call.call_id, self.incarnation, VERSION, expert_rows(call), 0, 0)

    def say(self, link: FakeLink, item: Frame | TrinityError, after_s: float = REPLY_S) -> None:
        """Let something arrive at the rank, unless the link is closed by then."""
        self.world.later(after_s, lambda: None if link.closed else link.inbox.append(item))

    def ignore(self, link: FakeLink, call: ExpertCall) -> None:
        """Answer: nothing, while pings are answered."""

    def late(self, after_s: float) -> Answer:
        """Answer: the right one, later."""
        return lambda link, call: self.reply(link, call, after_s)

    def die_at_call(self, link: FakeLink, call: ExpertCall) -> None:
        """Answer: end of file, for ever."""
        self.die()

    def blip(self, link: FakeLink, call: ExpertCall) -> None:
        """Answer: the link breaks; the shard lives on."""
        self.say(link, LinkLostError(link.peer, "reset"))

    def wrong_shape(self, link: FakeLink, call: ExpertCall) -> None:
        """Answer: a row too few."""
        reply = self.good_reply(call)
        self.say(link, replace(reply, rows_ND=reply.rows_ND[:-1]))

    def wrong_dtype(self, link: FakeLink, call: ExpertCall) -> None:
        """Answer: rows of another dtype."""
        reply = self.good_reply(call)
        self.say(link, replace(reply, rows_ND=reply.rows_ND.double()))

    def not_finite(self, link: FakeLink, call: ExpertCall) -> None:
        """Answer: NaN in the last row."""
        reply = self.good_reply(call)
        reply.rows_ND[-1, 0] = float("nan")
        self.say(link, reply)

    def undecodable(self, link: FakeLink, call: ExpertCall) -> None:
        """Answer: a frame that the rank's end cannot decode."""
        self.say(link, WireError("damaged"))

    def error(self, code: str) -> Answer:
        """Answer: a typed error."""
        return lambda link, call: self.say(
            link, CallError(call.call_id, code, "not this call", VERSION)
        )

    def die(self) -> None:
        """End: every link breaks and none can be made."""
        self.reachable = False
        for link in self.links:
            if not link.closed:
                link.inbox.append(LinkLostError(link.peer, "end of file"))


class World:
    """Time, shards by address, and what will happen."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.shards: dict[str, FakeShard] = {}
        self.counters = itertools.count(2)
        """Of placements after the first."""
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def clock(self) -> float:
        """Return the world's time."""
        return self.now_s

    def add(self, shard_id: int, incarnation: int = 1) -> FakeShard:
        """Start a shard; a second life takes the address of the first."""
        shard = FakeShard(self, shard_id, incarnation)
        self.shards[shard.info.address] = shard
        return shard

    def later(self, after_s: float, deed: Callable[[], None]) -> None:
        """Do something at a time to come."""
        self._count += 1
        heapq.heappush(self._agenda, (self.now_s + after_s, self._count, deed))

    def advance(self, by_s: float) -> None:
        """Go on to the next thing that happens, at most `by_s`."""
        end_s = self.now_s + by_s
        if self._agenda and self._agenda[0][0] <= end_s:
            self.now_s, _, deed = heapq.heappop(self._agenda)
            deed()
        else:
            self.now_s = end_s

    def connect(self, info: ShardInfo, deadline: Deadline) -> Session:
        """Open a session with whoever is at the address now."""
        shard = self.shards.get(info.address)
        if shard is None or not shard.reachable:
            raise LinkLostError(f"shard {info.shard_id}", "nobody is there")
        if shard.silent:
            raise LinkLostError(f"shard {info.shard_id}", "no answer to the handshake")
        link = FakeLink(shard)
        shard.links.append(link)
        return Session(link, Welcome(shard.shard_id, shard.incarnation, VERSION))


class JumpingPoller(Poller):
    """A poller whose waits move the world's time instead of blocking."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def wait(self, timeout_s: float) -> list[Arrival]:
        """See `Poller.wait`."""
        end_s = self._world.now_s + timeout_s
        while not (arrivals := super().wait(0.0)):
            left_s = end_s - self._world.now_s
            if left_s <= 0:
                break
            self._world.advance(left_s)
        return arrivals


class NowExecutor(Executor):
    """Runs work at once, in the caller."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `fn` now."""
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except TrinityError as error:
            future.set_exception(error)
        return future


@dataclass
class FakeRank:
    """A rank's dispatcher in a world, and what it reported."""

    world: World
    config: DispatchConfig = field(default_factory=DispatchConfig)
    metrics: Metrics = field(default_factory=Metrics)
    lost: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.links = ShardLinks(
            self.world.connect,
            NowExecutor(),
            self.config,
            lambda shard, reason: self.lost.append(shard.shard_id),
            self.world.clock,
            JumpingPoller(self.world),
        )
        self.dispatcher = Dispatcher(IDENTITY, self.links, self.config, self.metrics)

    def layer(self, hidden_TD: Tensor, topk_ids_TK: Int64, layer: int = 0) -> Tensor:
        """Send a layer's rows and wait for them; return (T, K, D)."""
        handle = self.dispatcher.dispatch(layer, hidden_TD, topk_ids_TK)
        return rows_by_slot(*self.dispatcher.collect(handle))


def rows_by_slot(rows_ND: Tensor, row_of_slot_TK: Int64) -> Tensor:
    """Return (T, K, D)."""
    return rows_ND[torch.from_numpy(row_of_slot_TK)]


def placement_of(
    shards: list[FakeShard], copies_EC: list[list[int]], counter: int = 1, num_layers: int = 2
) -> Placement:
    """Return a placement with the same copies in every layer; positions into `shards`."""
    width = max(len(copies) for copies in copies_EC)
    padded = [copies + [-1] * (width - len(copies)) for copies in copies_EC]
    copies_LEC: IntArray = np.array([padded] * num_layers, dtype=np.int32)
    infos = tuple(shard.info for shard in shards)
    return Placement(PlacementVersion(1, counter), infos, copies_LEC)
