"""A loaded rank as its Serve shell needs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from cluster.placement import Placement
from cluster.tls import TlsFiles
from trinity_serve.config import ServeConfig
from trinity_serve.engine.engine import Engine
from trinity_serve.load_reporter import LoadReporter
from trinity_serve.rank_host import RankHost


@dataclass
class LossRelay:
    """Passes on which shards the rank lost; set once, before the first is lost."""

    listener: Callable[[int, int, str], object] = lambda shard, incarnation, reason: None
    """Told (shard, incarnation, reason) on the engine's thread; must not block."""


@dataclass(frozen=True)
class OpenedRank:
    """An engine and its way to the shards. `publish` and `missing` are thread-safe."""

    engine: Engine
    publish: Callable[[Placement, str], None]
    """Takes a newer placement and the token that its shards ask for."""
    missing: Callable[[], list[str]]
    """Says why the model could not compute now; empty when it can."""

    losses: LossRelay = field(default_factory=LossRelay)
    load: LoadReporter | None = None
    fingerprint: str = ""
    """What decides the bits of its outputs."""
    tls: TlsFiles | None = None
    """Of event streams over TCP."""
    close: Callable[[], None] = lambda: None
    """Sends the traces that are left; blocks, to be called when the engine has ended."""

    def host(self, tag: str) -> RankHost:
        """Start the engine under the name `tag`; called on the event loop it is to live on."""
        return RankHost(tag, self.engine, self.missing, self.fingerprint, self.tls)


RankOpener = Callable[[ServeConfig, int], OpenedRank]
"""Loads the rank of this number; blocks."""
