"""One shard as a process of its own, without Ray: loads its slice, listens, serves."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch

from cluster.errors import ConfigError
from cluster.transport import transport_for
from cluster.transport.base import Listener
from experts.checkpoint import Checkpoint
from experts.config import ShardConfig, fingerprint_of, settle_dtype
from experts.kernels import load_expert_kernels
from experts.shard import ExpertShard, ShardIdentity
from experts.shard_loop import ShardLoop
from experts.store import ExpertStore, Progress

_TURN_S = 0.5
_INCARNATION_BITS = 48


@dataclass(frozen=True, slots=True)
class Announcement:
    """What whoever started the process needs to know once it serves."""

    address: str
    """Where ranks connect: the first address listened on."""
    addresses: tuple[str, ...]
    incarnation: int
    bytes_read: int
    """Tensor bytes read from the checkpoint."""


def run_shard(
    config: ShardConfig,
    stopping: threading.Event,
    on_ready: Callable[[Announcement], None],
    progress: Progress | None = None,
) -> None:
    """Load and serve until `stopping` is set (seen within half a second, between products).

    Raises ConfigError, CheckpointError, and OSError when an address cannot be listened on.
    """
    torch.set_num_threads(config.num_threads)
    checkpoint = Checkpoint.open(config.model)
    model = checkpoint.config
    if config.part.count > model.num_experts:
        problem = f"asks for {config.part.count} shards"
        raise ConfigError("shard", "--shard", problem, f"1 to {model.num_experts} for this model")
    kernels = load_expert_kernels(config.kernels)
    dtype = settle_dtype(config.dtype, model)
    store = ExpertStore.empty(model, kernels, dtype)
    store.load_slice(checkpoint, config.part, progress)
    fingerprint = fingerprint_of(checkpoint, kernels, dtype)
    identity = ShardIdentity(
        config.part.index, secrets.randbits(_INCARNATION_BITS), fingerprint.model
    )
    listeners: list[Listener] = []
    try:
        for bind in config.listen:
            listeners.append(transport_for(bind, config.tls).listen(bind))
        loop = ShardLoop(ExpertShard(identity, store), listeners, fingerprint, config.token)
        addresses = tuple(listener.address for listener in listeners)
        on_ready(Announcement(addresses[0], addresses, identity.incarnation, checkpoint.bytes_read))
        while not stopping.is_set():
            loop.run_once(_TURN_S)
        loop.close()
    finally:
        for listener in listeners:
            listener.close()
