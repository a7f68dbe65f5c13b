"""What happens to our own server on Ray: every kind of event, by the name in the results."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tests.chaos.clients import SlowReaders, VanishingClients
from tests.chaos.compound import InTurn, Meanwhile
from tests.chaos.faults import Fault, Freeze, Kill, Throttle
from tests.chaos.outcome import FailureKind
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
from tests.chaos.workload import ChaosRequest

SOCKETS_BREAK: frozenset[FailureKind] = frozenset({"broken", "refused"})
"""Of what holds the clients' sockets: streams on it break, and nobody listens until it is back."""

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


EVENTS: Mapping[str, Make] = {
    "shard killed": _kill(SHARD),
    "shard killed, no copy": _one_copy(lambda target: Kill("kill", target.victims(SHARD))),
    "two shards killed": _kill(SHARD, 2),
    "all shards killed": lambda name, target, _: Kill(
        name, target.victims(SHARD), target.num_shards
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
    "clients vanish": lambda name, target, request: VanishingClients(name, target.url, request),
    "slow readers": lambda name, target, request: SlowReaders(name, target.url, request),
}
"""By name: what makes the fault for a server that has the scale of a `Target`'s defaults."""


def events_for(names: list[str], target: Target, request: ChaosRequest) -> list[Fault]:
    """Return the faults of these names; clients that behave badly send `request`."""
    return [EVENTS[name](name, target, request) for name in names]
