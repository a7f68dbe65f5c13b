"""The layers whose rows are away, and what becomes of them when something arrives or is lost.

A reply is matched by the identity of its call, so an answer to a given-up attempt is dropped.

N rows, D hidden. Used by one thread.
"""

from __future__ import annotations

import numpy as np
import torch

from cluster.errors import (
    CoverageLostError,
    ExpertNotHeldError,
    FrameTooLargeError,
    LinkLostError,
    MalformedFrameError,
    PoisonedRequestError,
    ShardFailedError,
    TrinityError,
)
from cluster.metrics import Metric
from cluster.wire import CallError, CallId, ExpertReply, Frame
from router import race
from router.alone import send_alone
from router.config import DispatchConfig
from router.copies import ShardKey
from router.handle import Handle, HandleKey
from router.hedging import Hedging
from router.isolation import CRASHES_BEFORE_ISOLATION, Isolation, Slots
from router.links import ShardLinks
from router.plan import Int64
from router.sender import CallSender

_HOPELESS_CODES = frozenset({FrameTooLargeError.code, MalformedFrameError.code})
"""What a shard says of a call that no shard could take: asking again would change nothing."""


class InFlight:
    """Takes what arrives, and sends again what is lost. Any error it raises ends the step."""

    def __init__(
        self, links: ShardLinks, sender: CallSender, hedging: Hedging, config: DispatchConfig
    ) -> None:
        self._links = links
        self._sender = sender
        self._hedging = hedging
        self._config = config
        self._metrics = sender.metrics
        self._open: dict[HandleKey, Handle] = {}

    def __len__(self) -> int:
        """Layers that are away."""
        return len(self._open)

    def add(self, handle: Handle) -> None:
        """Await what will be sent of a layer."""
        self._open[handle.key] = handle

    def remove(self, handle: Handle) -> None:
        """Await nothing more of a layer."""
        self._open.pop(handle.key, None)

    def clear(self) -> None:
        """Await nothing more."""
        self._open.clear()

    def take(self, shard: ShardKey, item: Frame | TrinityError) -> None:
        """Take what the links gave. Raises `ShardFailedError` and `CoverageLostError`."""
        if isinstance(item, ExpertReply):
            self._on_reply(shard, item)
        elif isinstance(item, CallError):
            self._on_call_error(shard, item)
        elif isinstance(item, TrinityError):
            self._on_lost(shard, item)

    def _on_reply(self, shard: ShardKey, reply: ExpertReply) -> None:
        call = reply.call_id
        handle = self._awaiting(shard, call)
        if handle is None:
            return
        part = handle.parts[shard, call.attempt]
        num_rows, hidden_size = part.rows.num_rows, handle.hidden_TD.shape[1]
        rows_ND = reply.rows_ND
        if rows_ND.shape != (num_rows, hidden_size) or rows_ND.dtype != handle.hidden_TD.dtype:
            found = f"{tuple(rows_ND.shape)} {rows_ND.dtype}"
            wrong = f"rows {found}, not {(num_rows, hidden_size)} {handle.hidden_TD.dtype}"
            self._links.give_up(shard, ShardFailedError(shard[0], wrong))
            return
        del handle.parts[shard, call.attempt]
        took_s = self._links.clock() - part.sent_at_s
        asked, told_us = (num_rows, len(part.rows.expert_ids_G)), (reply.queue_us, reply.compute_us)
        self._metrics.times.answered(shard[0], asked, took_s, told_us)
        handle.progressed()
        self._hedging.took(shard, part, took_s)
        self._hedging.answered(shard, call)
        if handle.isolation is not None:
            handle.isolation.answered((shard, call.attempt))
        whole = num_rows == handle.row_of_slot_TK.size and isinstance(part.dest, slice)
        if whole and handle.filled_N is None:
            handle.rows_ND = rows_ND
            return
        if handle.rows_ND is None:
            handle.rows_ND = handle.hidden_TD.new_empty((handle.row_of_slot_TK.size, hidden_size))
        if handle.filled_N is not None:
            self._hedging.overtaken(call.attempt, race.fill(handle, part, rows_ND))
            return
        dest = part.dest if isinstance(part.dest, slice) else torch.from_numpy(part.dest)
        handle.rows_ND[dest] = rows_ND

    def _awaiting(self, shard: ShardKey, call: CallId) -> Handle | None:
        """Return the handle that waits for exactly this call; else count it as late."""
        handle = self._open.get((call.step, call.micro_batch, call.layer))
        identity = self._sender.identity
        ours = (call.rank, call.incarnation) == (identity.rank, identity.incarnation)
        if handle is not None and ours and (shard, call.attempt) in handle.parts:
            return handle
        self._metrics.inc(Metric.LATE_REPLIES)
        self._hedging.answered(shard, call)
        return None

    def _on_call_error(self, shard: ShardKey, error: CallError) -> None:
        handle = self._awaiting(shard, error.call_id)
        if handle is None:
            return
        self._hedging.answered(shard, error.call_id)
        failed = ShardFailedError(shard[0], f"{error.code}: {error.message}")
        if error.code in _HOPELESS_CODES:
            self._open.clear()
            raise failed
        if error.code == ExpertNotHeldError.code:
            self._on_not_held(shard, handle, error.call_id.attempt, failed)
            return
        # Whatever the reason, this shard cannot serve what the placement says it does.
        self._links.give_up(shard, failed)

    def _on_lost(self, shard: ShardKey, error: TrinityError) -> None:
        self._metrics.inc(Metric.SHARDS_LOST)
        self._hedging.lost(shard)
        for handle in list(self._open.values()):
            lost = [key for key in handle.parts if key[0] == shard]
            if not lost:
                continue
            handle.last_loss = error
            ended = self._links.stream_ended(shard)
            handle.num_crashes += ended
            for key in lost:
                self._resend(handle, key, ended)
            self.check_grace(handle)

    def _resend(self, handle: Handle, key: race.PartKey, ended: bool) -> None:
        """Ask elsewhere for a lost part; one request per frame once crashes have come twice."""
        slots = self._unanswered(handle, handle.parts.pop(key).slots())
        if slots is None:
            return
        if handle.requests is None or handle.num_crashes < CRASHES_BEFORE_ISOLATION:
            self._sender.send_slots(handle, slots)
            return
        if handle.isolation is None:
            handle.isolation = Isolation()
        if not handle.isolation.lost(key, slots, ended):
            handle.isolation.queue.extend(handle.requests.split(slots))

    def _unanswered(self, handle: Handle, slots: Slots) -> Slots | None:
        """Return what of a lost part nobody else will bring; None when others bring all of it."""
        slots = race.unanswered(handle, slots)
        if len(slots[0]) == 0:
            race.look_again(handle, self._links.clock())
            return None
        self._metrics.inc(Metric.DISPATCH_RETRIES)
        return slots

    def _on_not_held(
        self, shard: ShardKey, handle: Handle, attempt: int, error: ShardFailedError
    ) -> None:
        """Ask another copy, or the same shard under the next placement. The link is fine."""
        part = handle.parts.pop((shard, attempt))
        handle.last_loss = error
        expert_ids_G, layer = part.rows.expert_ids_G, handle.key[2]
        self._links.not_held(shard, layer, expert_ids_G, str(error))
        slots = self._unanswered(handle, part.slots())
        if slots is None:
            return
        if handle.isolation is None or not handle.isolation.lost(
            (shard, attempt), slots, ended=False
        ):
            self._sender.send_slots(handle, slots)
        self.check_grace(handle)

    def send_alone(self, handle: Handle) -> None:
        """Send the next request's rows of a layer in isolation, when nothing else is away."""
        # Neither may a call whose rows another shard brings: it could crash the one asked now.
        if self._hedging.has_calls_away:
            return
        try:
            waits = send_alone(handle, self._open.values(), self._links, self._sender)
        except PoisonedRequestError:
            self._open.clear()
            raise
        if waits:
            self.check_grace(handle)

    def retry_uncovered(self, handle: Handle) -> None:
        """Send rows whose experts live again."""
        owner_E = self._links.owners(handle.key[2])
        waiting, handle.uncovered = handle.uncovered, []
        for slots in waiting:
            if (owner_E[slots[0]] >= 0).any():
                self._sender.send_slots(handle, slots)
            else:
                handle.uncovered.append(slots)
        if handle.uncovered:
            self.check_grace(handle)

    def check_grace(self, handle: Handle) -> None:
        """Fail the step when rows were lost and none has come for the grace time."""
        now_s, grace_s = self._links.clock(), self._config.coverage_grace_s
        if handle.stalled_since_s is None:
            handle.stalled_since_s = now_s
        if now_s - handle.stalled_since_s <= grace_s:
            return
        self._open.clear()
        loss, experts = handle.last_loss, self._uncovered_experts(handle)
        if loss is not None and (isinstance(loss, ShardFailedError) or len(experts) == 0):
            raise loss
        raise CoverageLostError(handle.key[2], len(experts), grace_s)

    def _uncovered_experts(self, handle: Handle) -> Int64:
        """Return the experts without a living copy that rows of a layer wait for."""
        waiting = [slots[0] for slots in handle.uncovered]
        if handle.isolation is not None:
            # Rows that travel alone wait here, whether their experts live or not.
            waiting += [slots[0] for _, slots in handle.isolation.queue]
        experts = np.unique(np.concatenate(waiting)) if waiting else np.empty(0, np.int64)
        return experts[self._links.owners(handle.key[2])[experts] < 0]

    def check_times(self, handle: Handle) -> None:
        """Give up shards that answer pings but not their call."""
        now_s, limit_s = self._links.clock(), self._config.call_timeout_s
        handles = [handle] if handle.isolation is None else self._open.values()
        for (shard, _), part in [item for each in handles for item in each.parts.items()]:
            if now_s - part.sent_at_s > limit_s:
                slow = LinkLostError(f"shard {shard[0]}", f"no reply to a call for {limit_s:g} s")
                self._links.give_up(shard, slow)
        self._hedging.tend()
