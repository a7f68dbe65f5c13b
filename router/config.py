"""What the dispatcher may be told."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DispatchConfig:
    """Times in seconds.

    `ping_every_s`, `dead_after_s`: a shard silent for so long, pings unanswered, is dead.
    `call_timeout_s`: a shard that answers pings but not a call for this long is given up.
    `coverage_grace_s`: how long rows wait for an expert without a living shard before the requests
    that need it fail. `reconnect_every_s`: pause between attempts to reach a lost shard that the
    placement still names.

    `hedge_factor`, `hedge_floor_s`: a call is late after so many times the 99th percentile of its
    kind, and not before the floor; late rows are asked of a second copy. `hedge_share`: of all
    calls, how many this may concern; 0 for none.
    """

    call_timeout_s: float = 30.0
    coverage_grace_s: float = 30.0
    connect_timeout_s: float = 2.0
    reconnect_every_s: float = 0.25
    ping_every_s: float = 0.25
    dead_after_s: float = 1.2
    hedge_factor: float = 3.0
    hedge_floor_s: float = 0.05
    hedge_share: float = 0.05
