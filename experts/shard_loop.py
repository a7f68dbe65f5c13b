"""The shard's one loop: accepts ranks, answers pings, computes, replies. A bad frame kills nobody."""

from __future__ import annotations

from cluster.errors import LinkLostError, TrinityError
from cluster.transport.base import Link, Listener
from cluster.transport.poller import Poller
from cluster.types import Fingerprint
from cluster.wire import (
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
from experts.shard import ExpertShard


class ShardLoop:
    """Serves one `ExpertShard` over one listener. One thread runs it."""

    def __init__(
        self, shard: ExpertShard, listener: Listener, fingerprint: Fingerprint, token: str = ""
    ) -> None:
        self._shard = shard
        self._fingerprint = fingerprint
        self._token = token
        self._poller = Poller()
        self._poller.add_listener(listener)
        self._listener = listener
        self._ranks: dict[Link, Hello] = {}
        self._stopping = False

    def run_once(self, timeout_s: float) -> None:
        """Wait for frames and answer them."""
        calls: list[tuple[Link, ExpertCall]] = []
        for link, item in self._poller.wait(timeout_s):
            if isinstance(item, ExpertCall) and link in self._ranks:
                calls.append((link, item))
            else:
                self._answer(link, item)
        by_layer: dict[int, list[tuple[Link, ExpertCall]]] = {}
        for link, call in calls:
            error = self._shard.check(call)
            if error is not None:
                self._send(link, error)
            elif len(call.expert_ids_G):
                by_layer.setdefault(call.call_id.layer, []).append((link, call))
        for group in by_layer.values():
            replies = self._shard.compute([call for _, call in group])
            for (link, _), reply in zip(group, replies, strict=True):
                self._send(link, reply)

    def _answer(self, link: Link, item: Frame | TrinityError) -> None:
        if isinstance(item, LinkLostError):
            self._ranks.pop(link, None)
        elif isinstance(item, TrinityError):
            self._send(link, Refused(item.code, str(item)))
        elif isinstance(item, Ping):
            self._send(link, Pong(item.nonce))
        elif isinstance(item, Hello):
            self._greet(link, item)

    def _greet(self, link: Link, hello: Hello) -> None:
        if hello.fingerprint.model != self._fingerprint.model:
            self._send(link, Refused("wrong_model", "this shard serves another model"))
        elif hello.fingerprint.bit_class != self._fingerprint.bit_class:
            self._send(
                link,
                Refused("wrong_bit_class", f"this shard computes {self._fingerprint.bit_class}"),
            )
        else:
            self._ranks[link] = hello
            who = self._shard.identity
            self._send(link, Welcome(who.shard_id, who.incarnation, self._shard.placement_version))

    def _send(self, link: Link, frame: ExpertReply | CallError | Pong | Refused | Welcome) -> None:
        try:
            link.send(frame)
        except LinkLostError:
            self._ranks.pop(link, None)
