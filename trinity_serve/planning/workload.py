"""What is asked of the machines."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Workload:
    """Decoding sequences of a mean context; as many as fit unless streams or a rate are given."""

    context_tokens: int
    streams: int | None = None
    """So many at once."""
    tokens_per_s: float | None = None
    """As few as give this rate."""

    def __post_init__(self) -> None:
        if self.streams is not None and self.tokens_per_s is not None:
            problem = "streams and a rate are both given"
            raise ConfigError("plan", "--rate", problem, "one of --rate and --streams")
