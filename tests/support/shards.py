"""Small shards without a checkpoint, in this process or as a process of its own."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cluster.model_config import AfmoeConfig
from cluster.types import Fingerprint, PlacementVersion
from experts.kernels.reference import ReferenceKernels
from experts.shard import ExpertShard, ShardIdentity
from experts.store import ExpertStore

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 60.0


def random_store(config: AfmoeConfig, experts: Sequence[int] | None = None) -> ExpertStore:
    """A store of the reference backend; the same expert is the same in every store."""
    store = ExpertStore.empty(config, ReferenceKernels(), config.dtype)
    hidden, width = config.hidden_size, config.moe_intermediate_size
    for layer, table in enumerate(store.tables):
        for expert in range(config.num_experts) if experts is None else experts:
            random = torch.Generator().manual_seed(1000 * layer + expert)
            shapes = ((width, hidden), (width, hidden), (hidden, width))
            table.put(expert, *(torch.randn(*shape, generator=random) for shape in shapes))
    return store


def reference_fingerprint(config: AfmoeConfig) -> Fingerprint:
    """What shards of `random_shard` compare."""
    bit_class = f"{ReferenceKernels().bit_class}/{config.dtype}"
    return Fingerprint(config.fingerprint(config.dtype), bit_class)


def random_shard(
    config: AfmoeConfig, experts: Sequence[int] | None = None, shard_id: int = 0
) -> ExpertShard:
    """A shard over a `random_store`."""
    model = reference_fingerprint(config).model
    shard = ExpertShard(ShardIdentity(shard_id, 77, model), random_store(config, experts))
    shard.placement_version = PlacementVersion(1, 2)
    return shard


@dataclass
class ShardProcess:
    """``python -m experts`` that has said it is ready."""

    process: subprocess.Popen[str]
    addresses: dict[str, str]
    """Where it listens, by scheme."""
    bytes_read: int
    incarnation: int

    @classmethod
    def start(cls, *arguments: str, errors_to: Path, prefix: Sequence[str] = ()) -> ShardProcess:
        """Start and wait for the ready line; what it said otherwise is in the failure.

        `prefix` is a command that becomes the one that follows it, as `ip netns exec NAME` does.
        """
        command = [*prefix, sys.executable, "-m", "experts", *arguments]
        with errors_to.open("w") as errors:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, cwd=ROOT, text=True
            )
        assert process.stdout is not None
        readable, _, _ = select.select([process.stdout], [], [], START_TIMEOUT_S)
        line = process.stdout.readline() if readable else ""
        if not line:
            process.kill()
            process.wait()
            raise AssertionError(f"{command} is not ready:\n{errors_to.read_text()}")
        ready = json.loads(line)
        addresses = {address.partition(":")[0]: address for address in ready["addresses"]}
        return cls(process, addresses, ready["bytes_read"], ready["incarnation"])

    def __enter__(self) -> ShardProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        os.kill(self.process.pid, number)

    def stop(self) -> int:
        """End it as an operator would, whatever state it is in; return its exit code."""
        if self.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.process.terminate()
        try:
            return self.process.wait(10.0)
        finally:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()
