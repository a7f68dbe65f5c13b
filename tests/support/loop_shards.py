"""Shards that serve over real sockets from threads of this process, and a rank among them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from threading import Event, Thread

import numpy as np
import torch
from torch import Tensor

from cluster.deadline import Deadline
from cluster.metrics import Metrics
from cluster.model_config import AfmoeConfig
from cluster.placement import IntArray, Placement, ShardInfo
from cluster.transport import transport_for
from cluster.transport.session import Session, open_session
from cluster.types import PlacementVersion, ShardId
from cluster.wire import Hello
from experts.shard_loop import ShardLoop
from router.config import DispatchConfig
from router.dispatcher import Dispatcher
from router.links import ShardLinks
from router.sender import RankIdentity
from tests.support.shards import random_shard, reference_fingerprint

CONNECT_S = 10.0


@contextmanager
def loop_shard(config: AfmoeConfig, shard_id: int, bind: str) -> Iterator[str]:
    """Serve every expert at `bind` from a thread; yield the address."""
    shard = random_shard(config, shard_id=shard_id)
    listener = transport_for(bind).listen(bind)
    loop = ShardLoop(shard, listener, reference_fingerprint(config))
    stop = Event()

    def run() -> None:
        while not stop.is_set():
            loop.run_once(0.5)
        loop.close()

    thread = Thread(target=run, name=f"shard-{shard_id}", daemon=True)
    thread.start()
    try:
        yield listener.address
    finally:
        stop.set()
        loop.wake()
        thread.join(CONNECT_S)
        listener.close()


@dataclass
class LoopRank:
    """A dispatcher that has reached its shards."""

    dispatcher: Dispatcher
    metrics: Metrics
    config: AfmoeConfig

    def step(self, num_tokens: int, seed: int) -> list[Tensor]:
        """Send random rows through every layer; return (T, K, D) of each."""
        random = np.random.default_rng(seed)
        top_k, experts = self.config.num_experts_per_tok, self.config.num_experts
        self.dispatcher.begin_step()
        layers = []
        for layer in range(self.config.num_moe_layers):
            ids_TK = np.stack([random.permutation(experts)[:top_k] for _ in range(num_tokens)])
            values = random.standard_normal((num_tokens, self.config.hidden_size), np.float32)
            hidden_TD = torch.from_numpy(values)
            handle = self.dispatcher.dispatch(layer, hidden_TD, ids_TK)
            rows_ND, row_of_slot_TK = self.dispatcher.collect(handle)
            while not torch.isfinite(rows_ND).all():
                self.dispatcher.ask_again(handle)
                rows_ND, row_of_slot_TK = self.dispatcher.collect(handle)
            layers.append(rows_ND[torch.from_numpy(row_of_slot_TK)].clone())
        return layers


@contextmanager
def loop_rank(
    config: AfmoeConfig, addresses: Sequence[str], dispatch: DispatchConfig
) -> Iterator[LoopRank]:
    """Yield a rank whose experts all have a copy on every shard, first copies in turn."""
    fingerprint = reference_fingerprint(config)

    def connect(shard: ShardInfo, deadline: Deadline) -> Session:
        hello = Hello(fingerprint, 0, 1, 1, "")
        return open_session(transport_for(shard.address), shard.address, hello, deadline)

    infos = tuple(ShardInfo(ShardId(i), address, 77) for i, address in enumerate(addresses))
    count = len(addresses)
    copies_EC = [[(e + c) % count for c in range(count)] for e in range(config.num_experts)]
    copies_LEC: IntArray = np.array([copies_EC] * config.num_moe_layers, np.int32)
    metrics = Metrics()
    with ExitStack() as stack:
        executor = stack.enter_context(ThreadPoolExecutor(count))
        links = ShardLinks(connect, executor, dispatch)
        identity = RankIdentity(0, 1, fingerprint.model)
        dispatcher = stack.enter_context(closing(Dispatcher(identity, links, dispatch, metrics)))
        dispatcher.publish(Placement(PlacementVersion(1, 1), infos, copies_LEC))
        deadline = Deadline.after(CONNECT_S)
        while missing := links_missing(dispatcher, links):
            assert not deadline.expired(), missing
            dispatcher.wait(0.02)
        yield LoopRank(dispatcher, metrics, config)


def links_missing(dispatcher: Dispatcher, links: ShardLinks) -> list[str]:
    """Return what is not reached yet, replicas included."""
    return dispatcher.missing() or links.missing()
