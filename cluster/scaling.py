"""What scale is wanted, by whom, and the one operation that leads there or is rolled back. Pure."""

from __future__ import annotations

from dataclasses import replace

from cluster.planner import check_scale
from cluster.pool_messages import Scale, Target
from cluster.scale_operation import Operation

TRIES_BEFORE_ROLL_BACK = 3


class Scaling:
    """The wanted scale. One owner; not for several threads."""

    def __init__(self, num_experts: int, scale: Scale) -> None:
        self._num_experts = num_experts
        self._check(scale.target)
        self.scale = scale
        self.operation: Operation | None = None
        self._settled = scale.target
        """Where a failed operation returns to."""

    def _check(self, target: Target) -> None:
        check_scale(target.num_shards, target.num_replicas, self._num_experts)

    def adopt(self, scale: Scale) -> None:
        """Take over the scale that an earlier pool left."""
        self.scale, self._settled = scale, scale.target

    def reconfigure(self, configured: Target) -> bool:
        """Take note of the configured target; return whether an operation begins.

        Raises `ConfigError` when it is impossible.
        """
        self._check(configured)
        scale = self.scale.reconfigured(configured)
        if scale == self.scale:
            return False
        self._begin(scale)
        return True

    def scale_to(self, target: Target, operation_id: str) -> bool:
        """Return whether an operation begins: not twice for one. Raises `ConfigError`."""
        self._check(target)
        operation = self.operation
        if operation is not None and operation.operation_id == operation_id:
            return False
        if operation is not None and operation.target == target == self.scale.target:
            return False
        self._begin(replace(self.scale, target=target, operation=operation_id))
        return True

    def _begin(self, scale: Scale) -> None:
        self._change(scale)
        self.operation = Operation(scale.operation, scale.target, self._settled)

    def set_ranks_by_hand(self, by_hand: bool) -> bool:
        """Take note of who decides on the number of ranks; return whether that is new."""
        if by_hand == self.scale.ranks_by_hand:
            return False
        self._change(replace(self.scale, ranks_by_hand=by_hand))
        return True

    def _change(self, scale: Scale) -> None:
        self.scale = replace(scale, revision=self.scale.revision + 1)

    def adds(self, shard: int) -> bool:
        """Whether an operation under way is there to add this shard."""
        operation = self.operation
        return (
            operation is not None and not operation.ended and shard >= operation.before.num_shards
        )

    def cannot_load(self, problem: str) -> None:
        """A shard cannot load what it was told to: an operation under way is rolled back."""
        if self.operation is not None and not self.operation.ended:
            self.roll_back(problem)

    def does_not_start(self, shard: int, num_tries: int, reason: str) -> None:
        """A shard ended before it was ready; one that the operation adds is not tried for ever."""
        if num_tries >= TRIES_BEFORE_ROLL_BACK and self.adds(shard):
            self.roll_back(f"shard {shard} does not start: {reason}")

    def roll_back(self, error: str) -> None:
        """Return to what was before the operation."""
        operation = self.operation
        if operation is not None and self.scale.target != operation.before:
            operation.failed(error)
            self._change(replace(self.scale, target=operation.before))

    def advance(self, num_starting: int, num_missing: int, num_surplus: int) -> None:
        """Take note of what is left to do for the wanted target."""
        if self.operation is not None:
            self.operation.advance(num_starting, num_missing, num_surplus)
        if not num_starting and not num_missing and not num_surplus:
            self._settled = self.scale.target
