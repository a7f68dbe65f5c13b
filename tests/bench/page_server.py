"""The page over a pool of any size that only exists in memory: `python -m tests.bench.page_server`.

The pool's books, the admin routes and their encoding are the real ones; shards are not. Traffic
changes before each map, and some experts change shards, as they would in a busy minute.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import uvicorn

from cluster.expert_map import ExpertMap, describe_experts
from cluster.membership import Membership
from cluster.pool_messages import Scale, Target
from cluster.pool_status import PoolStatus, describe_pool
from tests.fakes.cluster_admin import FakeCluster
from tests.fakes.scripted_engine import ScriptedEngine
from tests.support.pool import World
from trinity_serve.admin_token import AdminToken
from trinity_serve.api.cluster import cluster_router
from trinity_serve.api.limits import ApiLimits
from trinity_serve.api.server import create_app
from trinity_serve.api.service import ModelService
from trinity_serve.http_protocol import HttpProtocol
from trinity_serve.model.generation_config import GenerationDefaults
from trinity_serve.synthetic import PRESETS, write_checkpoint


class _World(World):
    """One of any shape: what it holds the pool to elsewhere is written for one shape alone."""

    def _check_coverage(self) -> None:
        pass


@dataclass
class PoolInMemory(FakeCluster):
    """A `FakeCluster` whose status is told by a pool's real books."""

    world: World = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        shape = (self.num_moe_layers, self.num_experts)
        self.world = _World(Membership(*shape, Scale.of(Target(self.num_shards))))
        self.world.settle()

    async def status(self) -> PoolStatus:
        """See `ClusterAdmin`."""
        return describe_pool(self.world.pool, self.world.now_s)

    async def experts(self) -> ExpertMap:
        """See `ClusterAdmin`."""
        self.num_maps += 1
        if self.num_maps % 2:  # drawing anew each time would cost more than what is measured
            self._rows_LE = np.roll(self._rows_LE, 1, axis=1)
            self._move()
        return describe_experts(self._placement, self._rows_LE)


def main() -> None:
    """Serve until SIGINT; the token of the admin routes is printed after the endpoint."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=54)
    parser.add_argument("--experts", type=int, default=256)
    parser.add_argument("--shards", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(PRESETS["demo"], Path(folder) / "demo")
        service = ModelService.from_folder(
            checkpoint,
            name="demo",
            defaults=GenerationDefaults(eos_token_ids=(3,)),
            max_model_len=500,
            vocab_size=512,
        )
        pool = PoolInMemory(options.shards, options.layers, options.experts)
        token = AdminToken.open(Path(folder))
        app = create_app(ScriptedEngine(), service, ApiLimits())
        app.include_router(cluster_router(pool, token))
        listener = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_level="warning", http=HttpProtocol, lifespan="off")
        port = listener.getsockname()[1]
        print(f"Ready: http://127.0.0.1:{port}/v1 token {token.token}", flush=True)
        asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))


if __name__ == "__main__":
    main()
