"""What happens to our own server on Ray: every kind of event, by the name in the results."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tests.chaos.clients import SlowReaders, VanishingClients
from tests.chaos.compound import AtMoment, InTurn, Meanwhile, Moment
from tests.chaos.faults import Fault, Freeze, KeepAway, Kill, Throttle
from tests.chaos.outcome import FailureKind
from tests.chaos.proxy import Fault as ReplyFault
from tests.chaos.proxy import Faults
from tests.chaos.spoil import SpoilReplies
from tests.chaos.target import (
    CONTROLLER,
    INGRESS,
    POOL,
    PROXY,
    RANK,
    SHARD,
    Scale,
    Target,
)
from tests.chaos.tcp import SpoilConnections
from tests.chaos.workload import ChaosRequest

SOCKETS_BREAK: frozenset[FailureKind] = frozenset({"broken", "refused"})
"""Of what holds the clients' sockets: streams on it break, and nobody listens until it is back."""

UNAVAILABLE: frozenset[FailureKind] = frozenset({"unavailable"})
"""Of experts that are gone for longer than the grace: a typed 503, or an error event."""

BEYOND_GRACE_S = 38.0
"""`coverage_grace_s` is 30: what is held back for so long is missed."""

Make = Callable[[str, Target, ChaosRequest], Fault]


def _kill(pattern: str, count: int = 1, excused: frozenset[FailureKind] = frozenset()) -> Make:
    return lambda name, target, _: Kill(name, target.victims(pattern), count, excused)


def _one_copy(of: Callable[[Target], Fault]) -> Make:
    """Do it while no expert has a second copy."""

    def make(name: str, target: Target, _: ChaosRequest) -> Fault:
        fewer = Scale("one copy", target, {"replicas": 1})
        again = Scale("all copies", target, {"replicas": target.num_replicas})
        return InTurn(name, [fewer, of(target), again])

    return make


def _scale(*steps: Mapping[str, int]) -> Make:
    def make(name: str, target: Target, _: ChaosRequest) -> Fault:
        return InTurn(name, [Scale(str(wanted), target, wanted) for wanted in steps])

    return make


def _while_scaling(pattern: str) -> Make:
    """Kill at a random moment of a scale-up: in a join, a move or a publish."""

    def make(name: str, target: Target, _: ChaosRequest) -> Fault:
        more = Scale("more", target, {"shards": target.num_shards + 2})
        back = Scale("back", target, {"shards": target.num_shards})
        within_s = (0.0, 6.0)
        killing = Meanwhile(name, more, Kill(name, target.victims(pattern)), within_s)
        return InTurn(name, [killing, back])

    return make


def joining(target: Target, pattern: str) -> Moment:
    """Return the moment when there is a process of a kind that was not there before."""

    def note() -> Callable[[], bool]:
        before = set(target.victims(pattern).find())
        return lambda: bool(set(target.victims(pattern).find()) - before)

    return note


def publishing(target: Target) -> Moment:
    """Return the moment when the pool has another placement, of which some ranks may know."""

    def note() -> Callable[[], bool]:
        before = target.placement()
        return lambda: target.placement() not in ("", before)

    return note


def _at_a_join(pattern: str, *, newest: bool = False) -> Make:
    """Kill when a shard that is added has begun to start."""

    def make(name: str, target: Target, _: ChaosRequest) -> Fault:
        more = Scale("more", target, {"shards": target.num_shards + 1})
        back = Scale("back", target, {"shards": target.num_shards})
        killing = Kill(name, target.victims(pattern, newest=newest))
        return InTurn(name, [AtMoment(name, more, joining(target, SHARD), killing), back])

    return make


def _at_a_publish(pattern: str) -> Make:
    """Kill when a placement has just been published."""

    def make(name: str, target: Target, _: ChaosRequest) -> Fault:
        more = Scale("more", target, {"shards": target.num_shards + 1})
        back = Scale("back", target, {"shards": target.num_shards})
        killing = Kill(name, target.victims(pattern))
        return InTurn(name, [AtMoment(name, more, publishing(target), killing), back])

    return make


def _joining_rank_killed(name: str, target: Target, _: ChaosRequest) -> Fault:
    more = Scale("more", target, {"ranks": target.num_ranks + 1})
    back = Scale("back", target, {"ranks": target.num_ranks})
    killing = Kill(name, target.victims(RANK, newest=True))
    return InTurn(name, [AtMoment(name, more, joining(target, RANK), killing), back])


def _spoilt(kind: ReplyFault, share: float, most: int) -> Make:
    """Spoil a share of one shard's replies, so many at most."""
    faults = Faults((kind,), share=share, most=most)
    return lambda name, target, _: SpoilReplies(name, target.victims(SHARD), faults)


SPOILT: Mapping[str, Make] = {
    "frames corrupted": _spoilt(ReplyFault.CORRUPT, 0.05, 8),
    "frames truncated": _spoilt(ReplyFault.TRUNCATE, 0.05, 8),
    "frames duplicated": _spoilt(ReplyFault.DUPLICATE, 0.2, 200),
    "frames reordered": _spoilt(ReplyFault.REORDER, 0.2, 200),
    "frames late": _spoilt(ReplyFault.DELAY, 0.1, 20),
    "NaN in replies": _spoilt(ReplyFault.NAN, 0.05, 8),
    "connection reset": _spoilt(ReplyFault.RESET, 0.05, 8),
    "connection half-open": _spoilt(ReplyFault.HALF_OPEN, 0.05, 2),
}
"""What happens on the way between a shard and ranks; only where that is a Unix socket."""


def _suffers(kind: ReplyFault, share: float, most: int) -> Make:
    """Spoil a share of what comes from one shard over TCP, so many times at most."""
    faults = Faults((kind,), share=share, most=most)

    def make(name: str, target: Target, _: ChaosRequest) -> Fault:
        assert target.detours is not None, "only where links are TCP: --transport grpc"
        return SpoilConnections(name, target.victims(SHARD), target.detours, faults)

    return make


ON_TCP: Mapping[str, Make] = {
    "TCP bytes late": _suffers(ReplyFault.DELAY, 0.1, 20),
    "TCP connection reset": _suffers(ReplyFault.RESET, 0.02, 8),
    "TCP connection half-open": _suffers(ReplyFault.HALF_OPEN, 0.02, 2),
}
"""What happens on the way between a shard and ranks; only where that is TCP."""

EVENTS: Mapping[str, Make] = {
    "shard killed": _kill(SHARD),
    "shard killed, no copy": _one_copy(lambda target: Kill("kill", target.victims(SHARD))),
    "two shards killed": _kill(SHARD, 2),
    "all shards killed": lambda name, target, _: Kill(
        name, target.victims(SHARD), target.num_shards
    ),
    "two shards gone beyond the grace": lambda name, target, _: KeepAway(
        name, target.victims(SHARD), 2, BEYOND_GRACE_S, UNAVAILABLE
    ),
    "shard silent": lambda name, target, _: Freeze(name, target.victims(SHARD), 10.0),
    "shard silent for a moment": lambda name, target, _: Freeze(name, target.victims(SHARD), 0.8),
    "shard slow": lambda name, target, _: Throttle(name, target.victims(SHARD)),
    "rank killed": _kill(RANK),
    "rank silent": lambda name, target, _: Freeze(name, target.victims(RANK), 5.0),
    "pool killed": _kill(POOL),
    "controller killed": _kill(CONTROLLER),
    "ingress killed": _kill(INGRESS, excused=SOCKETS_BREAK),
    "proxy killed": _kill(PROXY, excused=SOCKETS_BREAK),
    "shards 3, 6, 2, 3": _scale({"shards": 6}, {"shards": 2}, {"shards": 3}),
    "ranks 2, 1, 2": _scale({"ranks": 1}, {"ranks": 2}),
    "shard killed while scaling": _while_scaling(SHARD),
    "pool killed while scaling": _while_scaling(POOL),
    "joining shard killed": _at_a_join(SHARD, newest=True),
    "pool killed at a join": _at_a_join(POOL),
    "shard killed at a publish": _at_a_publish(SHARD),
    "pool killed at a publish": _at_a_publish(POOL),
    "joining rank killed": _joining_rank_killed,
    **SPOILT,
    **ON_TCP,
    "clients vanish": lambda name, target, request: VanishingClients(name, target.url, request),
    "slow readers": lambda name, target, request: SlowReaders(name, target.url, request),
}
"""By name: what makes the fault for a server that has the scale of a `Target`'s defaults."""


def possible_events(transport: str) -> list[str]:
    """Return the names of the events that can happen to links of this kind."""
    other = SPOILT if transport == "grpc" else ON_TCP
    return [name for name in EVENTS if name not in other]


def events_for(names: list[str], target: Target, request: ChaosRequest) -> list[Fault]:
    """Return the faults of these names; clients that behave badly send `request`."""
    return [EVENTS[name](name, target, request) for name in names]
