"""Attention ranks as people are told of them."""

from __future__ import annotations

from dataclasses import dataclass

from trinity_serve.engine.request import EngineStats


@dataclass(frozen=True, slots=True)
class RankStatus:
    """One rank, as it last spoke to this ingress."""

    rank: str
    not_ready: str
    """Why it cannot serve, or empty."""
    num_running: int
    num_waiting: int
    num_waiting_tokens: int
    kv_usage: float
    """Share of the fuller KV pool in use, 0 to 1."""
    num_steps: int
    generation_tokens: int
    """Since the rank started."""

    @classmethod
    def of(cls, rank: str, stats: EngineStats, not_ready: str = "") -> RankStatus:
        """Return the status of a rank with these numbers."""
        return cls(
            rank=rank,
            not_ready=not_ready,
            num_running=stats.num_running,
            num_waiting=stats.num_waiting,
            num_waiting_tokens=stats.num_waiting_tokens,
            kv_usage=stats.kv_usage,
            num_steps=stats.num_steps,
            generation_tokens=stats.generation_tokens,
        )
