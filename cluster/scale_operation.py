"""What an operator asked for and how far it is: one operation at a time, absolute, repeatable."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from cluster.pool_messages import Target


class Phase(StrEnum):
    """What an operation waits for."""

    STARTING = "starting"
    """New shards start and load."""
    MOVING = "moving"
    """Shards that stay load what they get."""
    FREEING = "freeing"
    """Nothing is placed with its old owners any more; they free it and end."""
    DONE = "done"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"


@dataclass(slots=True)
class Operation:
    """One change of scale. `before` is what is returned to when it fails."""

    operation_id: str
    target: Target
    before: Target
    phase: Phase = Phase.STARTING
    error: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do for it."""
        return self.phase in (Phase.DONE, Phase.ROLLED_BACK)

    def failed(self, error: str) -> None:
        """Begin to return to what was before."""
        self.phase, self.error = Phase.ROLLING_BACK, error

    def advance(self, num_starting: int, num_missing: int, num_surplus: int) -> None:
        """Take note of what is left to do."""
        if self.ended:
            return
        left = num_starting + num_missing + num_surplus
        if self.phase is Phase.ROLLING_BACK:
            self.phase = Phase.ROLLED_BACK if left == 0 else Phase.ROLLING_BACK
        elif num_starting:
            self.phase = Phase.STARTING
        elif num_missing:
            self.phase = Phase.MOVING
        else:
            self.phase = Phase.FREEING if num_surplus else Phase.DONE
