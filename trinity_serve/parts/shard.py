"""What a shard loads: its slice, its listeners and its loop."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from pathlib import Path

from cluster.pool_messages import HoldsLE, LaunchOrder, SumsLE
from cluster.topology import join_addresses
from cluster.transport import transport_for
from cluster.transport.base import Listener
from cluster.types import PlacementVersion
from experts.checkpoint import Checkpoint
from experts.holding import LiveHolding
from experts.shard import ExpertShard, ShardIdentity
from experts.shard_loop import ShardLoop
from experts.store import ExpertStore
from trinity_serve.addresses import own_hosts
from trinity_serve.arithmetic import Arithmetic
from trinity_serve.config import ServeConfig
from trinity_serve.parts.checkpoint import open_checkpoint
from trinity_serve.threads import num_cores, shard_threads

TURN_S = 0.1


class SliceHost:
    """Loads a slice and serves it; `experts.actor.ShardHost`."""

    def __init__(
        self, config: ServeConfig, checkpoint: Checkpoint, order: LaunchOrder, node_host: str
    ) -> None:
        self.loaded_bytes = 0
        self.total_bytes = 0
        self.address = ""
        self._config = config
        self._checkpoint = checkpoint
        self._order = order
        self._node_host = node_host
        self._loop: ShardLoop | None = None
        self._shard: ExpertShard | None = None
        self._holding: LiveHolding | None = None
        self._listeners: list[Listener] = []
        self._folder = Path(tempfile.mkdtemp(prefix="trinity-shard-"))
        self._stopping = threading.Event()

    def load(self) -> None:
        """Read the slice and listen; blocks. Raises `TrinityError`."""
        model = self._checkpoint.config
        arithmetic = Arithmetic.settle(self._config, self._checkpoint)
        arithmetic.kernels.set_threads(shard_threads(self._config, num_cores()))
        store = ExpertStore.empty(model, arithmetic.kernels, arithmetic.dtype)
        store.load_held(self._checkpoint, self._order.holds_LE, self._progressed)
        self._listen(store, arithmetic)

    def _progressed(self, done_bytes: int, total_bytes: int) -> None:
        self.loaded_bytes, self.total_bytes = done_bytes, total_bytes

    def _listen(self, store: ExpertStore, arithmetic: Arithmetic) -> None:
        self._listeners = [
            transport_for(bind, self._config.security.link_tls).listen(bind)
            for bind in self._binds()
        ]
        identity = ShardIdentity(
            self._order.key.index, self._order.key.incarnation, arithmetic.fingerprint.model
        )
        shard = ExpertShard(identity, store)
        loop = ShardLoop(shard, self._listeners, arithmetic.fingerprint, token=self._order.token)
        self._shard, self._loop = shard, loop
        self._holding = LiveHolding(store, self._checkpoint, loop.wake)
        self.address = join_addresses([self._advertised(each) for each in self._listeners])

    def _binds(self) -> list[str]:
        """Return where to listen, best first."""
        bind_host, _ = own_hosts(self._config, self._node_host)
        unix, grpc = f"unix:{self._folder}/socket", f"grpc://{bind_host}:0"
        transport = self._config.experts.transport
        if transport in ("auto", "collective"):
            binds = [unix] if self._config.mode == "local" else [unix, grpc]
            return [f"collective+{bind}" for bind in binds] if transport == "collective" else binds
        return [unix] if transport == "unix" else [grpc]

    def _advertised(self, listener: Listener) -> str:
        bind_host, advertise_host = own_hosts(self._config, self._node_host)
        return listener.address.replace(f"//{bind_host}:", f"//{advertise_host}:")

    def serve(self) -> None:
        """Answer ranks until `stop`; blocks."""
        loop, shard, holding = self._loop, self._shard, self._holding
        assert loop is not None
        assert shard is not None
        assert holding is not None
        threading.Thread(target=holding.run, name="read-experts", daemon=True).start()
        while not self._stopping.is_set():
            loop.run_once(TURN_S)
            if holding.apply():
                shard.refresh()
        holding.stop()
        for listener in self._listeners:
            listener.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def stop(self) -> None:
        """End `serve`; thread-safe."""
        self._stopping.set()

    def place(self, version: PlacementVersion) -> None:
        """Name this placement in replies and refusals; thread-safe."""
        if self._shard is not None:
            self._shard.placement_version = version

    def hold(self, holds_LE: HoldsLE) -> None:
        """Hold these experts from now on; thread-safe, returns at once."""
        assert self._holding is not None
        self._holding.hold(holds_LE)

    def sums(self) -> SumsLE:
        """Return the checksums of what is held; thread-safe."""
        assert self._shard is not None
        return self._shard.store.sums_LE.copy()

    @property
    def revision(self) -> int:
        """Grows with every change of what is held."""
        return 0 if self._holding is None else self._holding.revision

    @property
    def problem(self) -> str:
        """Why what it was told to hold cannot be read."""
        return "" if self._holding is None else self._holding.problem

    def idle_s(self) -> float:
        """Return how long the compute loop has made no turn that was due."""
        return 0.0 if self._loop is None else self._loop.idle_s()

    def heard_at_s(self) -> float:
        """Return when a rank was last heard, on the monotonic clock."""
        loop = self._loop
        return time.monotonic() if loop is not None and loop.num_ranks else 0.0


def open_shard_host(config: ServeConfig, order: LaunchOrder, node_host: str) -> SliceHost:
    """Return the host of a shard's slice; nothing is read yet."""
    return SliceHost(config, open_checkpoint(config), order, node_host)
