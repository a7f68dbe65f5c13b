"""What a driver does about shards while their pool has not started: start them, show them load."""

from __future__ import annotations

import secrets

from tqdm import tqdm

from cluster.planner import Seat, plan_copies
from cluster.pool_messages import LaunchOrder, Scale, ShardKey, Target
from cluster.shard_handles import ShardHandles
from cluster.shard_launcher import ShardLauncher


def start_shards(launcher: ShardLauncher, app: str, target: Target) -> None:
    """Start the first shards before their pool, which finds and adopts them; saves seconds."""
    scale, token = Scale.of(target), secrets.token_hex(16)
    seats = [Seat(index) for index in range(target.num_shards)]
    plan_LER = plan_copies(seats, target.num_replicas, launcher.model_shape())
    for index in range(target.num_shards):
        key = ShardKey(index, incarnation=index + 1)
        holds_LE = (plan_LER == index).any(axis=2)
        launcher.launch(LaunchOrder(key, app, 0, scale, token, holds_LE))


class LoadingProgress:
    """Bars of the shards that load, for someone who waits at a terminal."""

    def __init__(self, app: str) -> None:
        self._handles = ShardHandles(app)
        self._bars: dict[ShardKey, tqdm[None]] = {}

    def __enter__(self) -> LoadingProgress:
        return self

    def show(self) -> None:
        """Bring the bars up to date; blocks for a moment."""
        for key, report in self._handles.poll(self._handles.find()):
            if report is None:
                continue
            if key not in self._bars:
                name = f"shard {key.index + 1}"
                self._bars[key] = tqdm(desc=name, unit="B", unit_scale=True, leave=False)
            bar = self._bars[key]
            bar.total = report.total_bytes
            bar.update(report.loaded_bytes - bar.n)

    def __exit__(self, *_: object) -> None:
        for bar in self._bars.values():
            bar.close()
