"""Insides for the Ray application that need no model: what is generated depends on ids alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from ray.serve import Application
from torch import Tensor

from cluster.pool_messages import HoldsLE, LaunchOrder, SumsLE
from cluster.types import PlacementVersion
from experts.actor import ShardLife
from experts.launcher import ActorLauncher
from trinity_serve.app import Parts, assemble
from trinity_serve.config import ServeConfig, parse_serve_args
from trinity_serve.engine.config import EngineConfig
from trinity_serve.engine.engine import Engine
from trinity_serve.model.batch import ForwardBatch
from trinity_serve.opened_rank import OpenedRank
from trinity_serve.parts.service import open_service

VOCAB_SIZE = 512
SHAPE = (2, 16)


class FakeHost:
    """A shard that loads nothing, slowly, and is never called."""

    revision = 1
    problem = ""

    def __init__(self, order: LaunchOrder, node_host: str, load_s: float) -> None:
        self.loaded_bytes = 0
        self.total_bytes = 950_000_000
        self.address = f"inproc:{order.key.incarnation}"
        self._load_s = load_s
        self._stop = threading.Event()
        self._holds_LE = order.holds_LE

    def load(self) -> None:
        for percent in range(100):
            self.loaded_bytes = self.total_bytes * percent // 100
            time.sleep(self._load_s / 100)

    def serve(self) -> None:
        self._stop.wait()

    def stop(self) -> None:
        self._stop.set()

    def place(self, version: PlacementVersion) -> None:
        pass

    def hold(self, holds_LE: HoldsLE) -> None:
        self._holds_LE = holds_LE
        self.revision += 1

    def sums(self) -> SumsLE:
        return self._holds_LE.astype(np.uint32)

    def idle_s(self) -> float:
        return 0.0

    def heard_at_s(self) -> float:
        return 0.0


def next_token(token_id: int, position: int) -> int:
    """What a fake rank generates after `token_id`; never an end-of-sequence id."""
    return 10 + (token_id * 31 + position * 7) % 400


@dataclass
class FakeRunner:
    """Steps that take a while and depend on the last token and its position alone."""

    step_s: float
    vocab_size: int = VOCAB_SIZE

    def __post_init__(self) -> None:
        self._wake = threading.Event()

    def forward(self, batch: ForwardBatch) -> Tensor:
        time.sleep(self.step_s)
        logits = torch.zeros(len(batch.logits_rows_R), self.vocab_size)
        for row, t in enumerate(batch.logits_rows_R):
            token = next_token(int(batch.token_ids_T[t]), int(batch.positions_T[t]))
            logits[row, token] = 50.0
        return logits

    def wait(self, timeout_s: float) -> None:
        self._wake.wait(timeout_s)
        self._wake.clear()

    def last_sign_at_s(self) -> float:
        return 0.0

    def wake(self) -> None:
        self._wake.set()


def open_fake_rank(step_s: float, config: ServeConfig, rank: int) -> OpenedRank:
    engine_config = EngineConfig(
        num_global_blocks=256,
        num_sliding_blocks=256,
        sliding_window=64,
        max_model_len=1024,
        max_num_seqs=config.attention.max_num_seqs,
        max_num_batched_tokens=config.attention.max_num_batched_tokens,
        max_prefill_chunk=config.attention.max_prefill_chunk,
        max_waiting=config.attention.max_waiting,
    )
    covered: list[bool] = [False]
    return OpenedRank(
        Engine(FakeRunner(step_s), engine_config),
        lambda placement, token: covered.__setitem__(0, placement.covered),
        lambda: [] if covered[0] else ["no placement"],
    )


def fake_shape() -> tuple[int, int]:
    return SHAPE


def fake_parts(config: ServeConfig, step_s: float = 0.005, load_s: float = 0.5) -> Parts:
    """Return parts whose service reads tokenizer and template of the configured checkpoint."""
    life = ShardLife(config.experts.orphan_grace_s)
    launcher = ActorLauncher(partial(FakeHost, load_s=load_s), fake_shape, {}, {}, life)
    return Parts(launcher, partial(open_fake_rank, step_s), open_service)


def build_slow(args: Mapping[str, object]) -> Application:
    """Return an application whose shards load for many seconds; for Serve files."""
    config = parse_serve_args(args)
    parts = replace(fake_parts(config, load_s=12.0), report_progress_after_s=(5.0, 60.0))
    return assemble(config, parts)


def expected(prompt_ids: list[int], num_tokens: int) -> list[int]:
    """Return what a fake rank generates greedily after this prompt."""
    ids = list(prompt_ids)
    for _ in range(num_tokens):
        ids.append(next_token(ids[-1], len(ids) - 1))
    return ids[len(prompt_ids) :]


__all__ = ["expected", "fake_parts"]
