"""What people are told about the pool: plain data out of a `Membership`."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.membership import Membership
from cluster.pool_messages import Target
from cluster.scale_operation import Operation
from cluster.spares import num_spares


@dataclass(frozen=True, slots=True)
class ShardStatus:
    """One shard."""

    shard: int
    incarnation: int
    state: str
    node: str
    label: str
    num_experts_held: int
    """Over all layers."""
    num_experts_planned: int


@dataclass(frozen=True, slots=True)
class OperationStatus:
    """A change of scale."""

    operation_id: str
    target: Target
    phase: str
    error: str


@dataclass(frozen=True, slots=True)
class FailureStatus:
    """Something that went wrong lately."""

    seconds_ago: float
    shard: int
    incarnation: int
    reason: str


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """The whole pool."""

    summary: str
    placement: str
    """Version; ``none`` before the first."""
    covered: bool
    settled: bool
    target: Target
    configured: Target
    num_ranks: int
    """Attention ranks that follow the placement."""
    num_uncovered: int
    """(layer, expert) that no living shard holds for sure."""
    num_spares: int
    """Copies beyond those that every expert has."""
    num_moved_for_load: int
    """Copies moved or added since the pool started, because of load alone."""
    has_spare: bool
    """Whether a process with its imports done waits to take over a lost slice."""
    num_loads_left: int
    """Copies that shards have yet to read."""
    num_frees_left: int
    """Copies that are yet to be freed at their old owners."""
    operation: OperationStatus | None
    shards: tuple[ShardStatus, ...]
    failures: tuple[FailureStatus, ...]
    """The last ones, newest first."""


def describe_operation(operation: Operation) -> OperationStatus:
    """Return `operation` as people see it."""
    return OperationStatus(
        operation.operation_id, operation.target, operation.phase.value, operation.error
    )


def describe_pool(membership: Membership, now_s: float, *, has_spare: bool = False) -> PoolStatus:
    """Return `membership` as people see it."""
    holdings, placement = membership.holdings, membership.placement
    sizes = holdings.sizes()
    shards = []
    for member in membership.members:
        seat, report = member.key.index, member.report
        shards.append(
            ShardStatus(
                shard=seat,
                incarnation=member.key.incarnation,
                state=member.state.value,
                node="" if report is None else report.node,
                label="" if report is None else report.label,
                num_experts_held=sizes.get(seat, 0),
                num_experts_planned=int(holdings.planned(seat).sum()),
            )
        )
    failures = [
        FailureStatus(round(now_s - each.at_s, 1), each.shard, each.incarnation, each.reason)
        for each in reversed(membership.failures)
    ]
    operation = membership.operation
    return PoolStatus(
        summary=membership.progress(),
        placement="none" if placement is None else str(placement.version),
        covered=membership.covered,
        settled=membership.settled,
        target=membership.scale.target,
        configured=membership.scale.configured,
        num_ranks=membership.num_ranks,
        num_uncovered=membership.num_uncovered,
        num_spares=num_spares(holdings.plan_LER, membership.scale.target.num_replicas),
        num_moved_for_load=membership.num_moved_for_load,
        has_spare=has_spare,
        num_loads_left=holdings.num_missing(sizes),
        num_frees_left=holdings.num_surplus(sizes),
        operation=None if operation is None else describe_operation(operation),
        shards=tuple(shards),
        failures=tuple(failures),
    )
