"""Serve's request router between ingress and ranks: a shell around `trinity_serve.routing`.

It also sees a rank leave before the rank itself knows, and tells the calls that are open there.
Runs on Serve's router loop in the ingress's process.
"""

from __future__ import annotations

import time

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from trinity_serve.prefix_index import PrefixIndex
from trinity_serve.rank_attempt import CallWatcher
from trinity_serve.rank_call import GenerateCall
from trinity_serve.routing import RankLoad, order_ranks


class RankRouter(RequestRouter):
    """Cached prefix, session and load decide; calls on a rank that leaves are told.

    No `FIFOMixin`: with it a rank chosen for one request goes to whichever has waited longest.
    """

    def initialize_state(self, **kwargs: object) -> None:
        """Start with no call open and nothing known to be cached."""
        self._open_calls: dict[str, dict[str, CallWatcher]] = {}
        self._prefixes = PrefixIndex()

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Return the candidates in order of preference."""
        by_id = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        session_id = pending_request.metadata.session_id if pending_request else ""
        call = _call_of(pending_request) if pending_request else None
        refused_by = call.watcher.refused_by if call is not None and call.watcher else frozenset()
        digests = call.digests if call is not None and len(by_id) > 1 else ()
        now_s = time.monotonic()
        loads = [
            RankLoad(rank, self._load(replica), self._prefixes.cached_tokens(rank, digests, now_s))
            for rank, replica in by_id.items()
        ]
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
        return [[by_id[rank]] for rank in order_ranks(loads, session_id, refused_by)]

    def _load(self, replica: RunningReplica) -> int:
        """Return the calls a rank has open: what it last said of all ingresses, or our own."""
        own = len(self._open_calls.get(replica.replica_id.unique_id, ()))
        said = self.replica_queue_len_cache.get(replica.replica_id)
        return max(own, said or 0)

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: object
    ) -> None:
        """Take note of which rank has the call, and tell its watcher."""
        call = _call_of(pending_request)
        if call is None:
            return
        rank = replica_id.unique_id
        self._prefixes.sent(rank, call.digests, time.monotonic())
        if call.watcher is None:
            return
        calls = self._open_calls.setdefault(rank, {})
        calls[pending_request.metadata.internal_request_id] = call.watcher
        call.watcher.routed(rank)
        if replica_id not in self._replicas:
            call.watcher.leaving()

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Forget a call that has ended."""
        self._open_calls.get(replica_id.unique_id, {}).pop(internal_request_id, None)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Tell the calls on ranks that are no candidates any more."""
        super().update_replicas(replicas)
        staying = {replica.replica_id.unique_id for replica in replicas}
        self._prefixes.keep_only(staying)
        for rank in [rank for rank in self._open_calls if rank not in staying]:
            for watcher in self._open_calls.pop(rank).values():
                watcher.leaving()


def _call_of(pending_request: PendingRequest) -> GenerateCall | None:
    for argument in pending_request.args:
        if isinstance(argument, GenerateCall):
            return argument
    return None
