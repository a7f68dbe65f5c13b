"""How ranks and shards may lie on devices, and what fits where.

Separate: ranks and shards have devices of their own. Co-located: each device has one rank and one
shard. Mixed: ranks have the GPUs, shards are on CPU hosts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from trinity_serve.planning.figures import DeviceFigures
from trinity_serve.planning.sizes import ModelSizes


class LayoutKind(StrEnum):
    """Where the experts are, seen from the ranks."""

    COLOCATED = "co-located"
    SEPARATE = "separate"
    MIXED = "mixed"


@dataclass(frozen=True, slots=True)
class Cluster:
    """Equal nodes of equal GPUs, and hosts whose CPUs may compute experts."""

    gpu: DeviceFigures
    gpus_per_node: int
    num_nodes: int
    host: DeviceFigures
    num_hosts: int
    """0: no mixed layout."""

    @property
    def num_gpus(self) -> int:
        """GPUs of all nodes."""
        return self.gpus_per_node * self.num_nodes


@dataclass(frozen=True, slots=True)
class Layout:
    """Ranks and shards on devices; co-located, both counts are the number of devices."""

    kind: LayoutKind
    num_ranks: int
    num_shards: int
    rank_device: DeviceFigures
    shard_device: DeviceFigures
    num_nodes: int
    copies: int = 1
    """Of each expert."""

    @property
    def num_gpus(self) -> int:
        """GPUs that it takes."""
        separate = self.kind is LayoutKind.SEPARATE
        return self.num_ranks + (self.num_shards if separate else 0)

    @property
    def remote_share(self) -> float:
        """Which share of the rows leaves its device, under uniform routing."""
        return 1.0 - 1.0 / self.num_shards if self.kind is LayoutKind.COLOCATED else 1.0

    @property
    def network_share(self) -> float:
        """Which share of the rows leaves its node, ranks and shards spread over all nodes."""
        return 1.0 - 1.0 / self.num_nodes

    def kv_room_bytes(self, sizes: ModelSizes, reserve_bytes: float) -> float:
        """Memory of a rank's device that is left for KV; negative when weights do not fit."""
        room = self.rank_device.memory_bytes - reserve_bytes - sizes.rank_bytes
        if self.kind is LayoutKind.COLOCATED:
            room -= sizes.slice_bytes(self.num_shards, self.copies)
        return room

    def max_streams(self, sizes: ModelSizes, reserve_bytes: float, context_tokens: int) -> int:
        """Sequences of this mean context that all ranks can hold; 0 when something does not fit."""
        if self.num_shards > sizes.config.num_experts * self.copies:
            return 0
        if self.copies > self.num_shards:
            return 0
        slice_bytes = sizes.slice_bytes(self.num_shards, self.copies)
        if slice_bytes > self.shard_device.memory_bytes - reserve_bytes:
            return 0
        room = self.kv_room_bytes(sizes, reserve_bytes)
        sequence_bytes = sizes.kv_bytes(context_tokens)
        return int(self.num_ranks * room / sequence_bytes) if room >= sequence_bytes else 0


def colocated(gpu: DeviceFigures, num_gpus: int, num_nodes: int, copies: int) -> Layout:
    """Return the layout with a rank and a shard on each GPU."""
    return Layout(LayoutKind.COLOCATED, num_gpus, num_gpus, gpu, gpu, num_nodes, copies)


def candidates(cluster: Cluster, copies: int) -> Iterator[Layout]:
    """Yield every layout worth looking at: all GPUs of one node, of two nodes, and so on.

    Fewer nodes than there are can be faster where the network between them is slow.
    """
    gpu, host = cluster.gpu, cluster.host
    for num_nodes in range(1, cluster.num_nodes + 1):
        num_gpus = num_nodes * cluster.gpus_per_node
        yield colocated(gpu, num_gpus, num_nodes, copies)
        for num_ranks in range(1, num_gpus):
            shards = num_gpus - num_ranks
            yield Layout(LayoutKind.SEPARATE, num_ranks, shards, gpu, gpu, num_nodes, copies)
        if cluster.num_hosts:
            yield Layout(
                LayoutKind.MIXED, num_gpus, cluster.num_hosts, gpu, host, num_nodes, copies
            )
