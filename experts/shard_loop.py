"""The shard's one loop: accepts ranks, answers pings, computes, replies. A bad frame kills nobody.

Several listeners, one thread. Calls of ranks in step run together: see `experts.alignment`.
"""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cluster.errors import (
    FrameTooLargeError,
    LinkLostError,
    StaleEpochError,
    TrinityError,
    UnauthenticatedError,
    WireError,
    WrongBitClassError,
    WrongModelError,
)
from cluster.transport.base import Link, Listener
from cluster.transport.poller import Poller
from cluster.types import Fingerprint
from cluster.wire import (
    Busy,
    CallError,
    ExpertCall,
    ExpertReply,
    Frame,
    Hello,
    Ping,
    Pong,
    Refused,
    Welcome,
)
from experts.alignment import Alignment, Batch
from experts.compute_estimate import ComputeEstimate
from experts.shard import ExpertShard

logger = logging.getLogger(__name__)

HANDSHAKE_S = 5.0
"""A link that has not said who it is for so long is closed."""
_TIDY_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Arrived:
    """A call that waits for its product."""

    link: Link
    call: ExpertCall
    at_s: float
    num_changes: int
    """The shard's, when the call was checked."""


class ShardLoop:
    """Serves one `ExpertShard` to the ranks that come to its listeners."""

    def __init__(
        self,
        shard: ExpertShard,
        listeners: Sequence[Listener] | Listener,
        fingerprint: Fingerprint,
        token: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shard = shard
        self._fingerprint = fingerprint
        self._token = token
        self._clock = clock
        self._poller = Poller()
        for listener in [listeners] if isinstance(listeners, Listener) else listeners:
            self._poller.add_listener(listener)
        self._ranks: dict[Link, Hello] = {}
        self._callers: dict[Link, tuple[int, int]] = {}
        """(rank, incarnation) of a link's calls: nobody waits for these once it is gone."""
        self._strangers: dict[Link, float] = {}
        """Links without a welcome, and when each was first seen."""
        self._epoch = 0
        self._alignment: Alignment[Arrived] = Alignment()
        self._estimate = ComputeEstimate()
        self._next_tidy_s = 0.0
        self._excused_until_s = clock()
        self.num_calls = 0
        self.num_products = 0
        """Products that computed `num_calls` calls: weights are read once for each."""

    @property
    def num_ranks(self) -> int:
        """Ranks that have been welcomed and are connected."""
        return len(self._ranks)

    def run_once(self, timeout_s: float) -> None:
        """Wait up to `timeout_s` for frames and answer them."""
        closes_at_s = self._alignment.next_deadline_s()
        if closes_at_s is not None:
            timeout_s = min(timeout_s, max(0.0, closes_at_s - self._clock()))
        arrivals = self._poller.wait(timeout_s)
        now_s = self._excused_until_s = self._clock()
        for link, item in arrivals:
            if isinstance(item, ExpertCall):
                self._take_call(link, item, now_s)
            else:
                self._answer(link, item, now_s)
        for batch in self._alignment.take(now_s):
            self._run(batch)
        if now_s >= self._next_tidy_s:
            self._tidy(now_s)

    def wake(self) -> None:
        """End a `run_once` that waits; thread-safe."""
        self._poller.wake()

    def close(self) -> None:
        """Close every link; the listeners are the caller's."""
        for link in self._poller.links:
            self._drop(link)
        self._poller.close()

    def _take_call(self, link: Link, call: ExpertCall, now_s: float) -> None:
        if link not in self._ranks:
            error: CallError | None = CallError(
                call.call_id,
                UnauthenticatedError.code,
                "a call before the handshake",
                self._shard.placement_version,
            )
        else:
            error = self._shard.check(call)
        if error is not None:
            self._send(link, error)
        else:
            self._callers[link] = (call.call_id.rank, call.call_id.incarnation)
            self._alignment.add(
                call.call_id, Arrived(link, call, now_s, self._shard.num_changes), now_s
            )

    def _run(self, batch: Batch[Arrived]) -> None:
        # Calls without rows only said where their rank stands; ranks that left get no answer.
        todo = [
            item
            for item in batch.origins
            if len(item.call.expert_ids_G) and item.link in self._ranks and self._still_held(item)
        ]
        if not todo:
            return
        num_rows = sum(len(item.call.token_idx_N) for item in todo)
        busy_s = self._estimate.announce_s(num_rows)
        if busy_s:
            for link in list(self._ranks):
                self._send(link, Busy(int(busy_s * 1e6)))
        start_s = self._clock()
        self._excused_until_s = start_s + busy_s
        parts = self._shard.compute([item.call for item in todo])
        took_s = self._clock() - start_s
        self.num_calls += len(todo)
        self.num_products += 1
        for item, rows_ND in zip(todo, parts, strict=True):
            queue_s = start_s - item.at_s
            self._send(item.link, self._shard.reply(item.call, rows_ND, queue_s, took_s))
        self._alignment.ran(took_s)
        self._estimate.ran(num_rows, took_s)

    def _still_held(self, item: Arrived) -> bool:
        """Refuse a call whose expert was freed while it waited."""
        if item.num_changes == self._shard.num_changes:
            return True
        error = self._shard.check(item.call)
        if error is not None:
            self._send(item.link, error)
        return error is None

    def idle_s(self) -> float:
        """Return how long the loop has made no turn, beyond what it announced; thread-safe."""
        return max(0.0, self._clock() - self._excused_until_s)

    def _answer(self, link: Link, item: Frame | TrinityError, now_s: float) -> None:
        if isinstance(item, LinkLostError):
            self._drop(link)
        elif isinstance(item, TrinityError):
            logger.warning("%s: refused a frame: %s", link.peer, item)
            self._send(link, Refused(item.code, str(item)))
        elif isinstance(item, Ping):
            self._send(link, Pong(item.nonce))
        elif isinstance(item, Hello):
            self._greet(link, item)
        if link not in self._ranks and not isinstance(item, LinkLostError):
            self._strangers.setdefault(link, now_s)

    def _greet(self, link: Link, hello: Hello) -> None:
        problem = self._problem(hello)
        if problem is not None:
            logger.warning("%s: refused: %s", link.peer, problem)
            self._send(link, Refused(problem.code, str(problem)))
            return
        self._epoch = max(self._epoch, hello.epoch)
        self._ranks[link] = hello
        self._strangers.pop(link, None)
        who = self._shard.identity
        self._send(link, Welcome(who.shard_id, who.incarnation, self._shard.placement_version))

    def _problem(self, hello: Hello) -> WireError | None:
        """Return why a rank is not accepted, or None. The token first: strangers learn nothing."""
        ours, theirs = self._fingerprint, hello.fingerprint
        if not hmac.compare_digest(hello.token.encode(), self._token.encode()):
            return UnauthenticatedError("the token is not this cluster's")
        if theirs.model != ours.model:
            return WrongModelError(
                f"this shard serves model {ours.model.hex()}, the rank {theirs.model.hex()}: "
                f"checkpoint and dtype must be the same"
            )
        if theirs.bit_class != ours.bit_class:
            return WrongBitClassError(
                f"this shard computes {ours.bit_class}, the rank {theirs.bit_class}"
            )
        if hello.epoch < self._epoch:
            return StaleEpochError(f"the rank acts for epoch {hello.epoch}, not {self._epoch}")
        return None

    def _send(self, link: Link, frame: Frame) -> None:
        try:
            link.send(frame)
        except LinkLostError:
            self._drop(link)
        except FrameTooLargeError as error:
            if isinstance(frame, ExpertReply):
                version = self._shard.placement_version
                self._send(link, CallError(frame.call_id, error.code, str(error), version))

    def _drop(self, link: Link) -> None:
        """Forget a rank; calls of it that wait are not computed."""
        self._ranks.pop(link, None)
        self._strangers.pop(link, None)
        caller = self._callers.pop(link, None)
        if caller is not None:
            self._alignment.forget(*caller)
        self._poller.remove(link)
        link.close()

    def _tidy(self, now_s: float) -> None:
        """Close links that never said who they are."""
        self._next_tidy_s = now_s + _TIDY_EVERY_S
        for link in self._poller.links:
            if link not in self._ranks:
                since_s = self._strangers.setdefault(link, now_s)
                if now_s - since_s > HANDSHAKE_S:
                    logger.warning("%s: closed, no handshake for %g s", link.peer, HANDSHAKE_S)
                    self._drop(link)
