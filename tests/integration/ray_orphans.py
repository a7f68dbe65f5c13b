"""Start shards that nobody will ever ask; arguments: Ray's address, their grace in seconds."""

from __future__ import annotations

import sys
from functools import partial

import ray

from cluster.first_shards import start_shards
from cluster.pool_messages import Target
from experts.actor import ShardLife
from experts.launcher import ActorLauncher
from tests.integration.ray_fakes import FakeHost, fake_shape

if __name__ == "__main__":
    ray.init(address=sys.argv[1], log_to_driver=False)
    open_host = partial(FakeHost, load_s=0.0)
    launcher = ActorLauncher(open_host, fake_shape, {}, {}, ShardLife(float(sys.argv[2])))
    start_shards(launcher, "orphans", Target(2, 1))
    ray.shutdown()
