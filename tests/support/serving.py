"""An engine over real shards in this process, without HTTP and without threads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from cluster.metrics import Metrics
from cluster.placement import Placement
from experts.checkpoint import Checkpoint
from trinity_serve.arithmetic import Arithmetic
from trinity_serve.config import ServeConfig, parse_serve_args
from trinity_serve.engine.engine import Engine
from trinity_serve.engine.request import GenerationRequest, SamplingParams, TokenEvent
from trinity_serve.engine.sampler import Sample, SampledChoice, Sampler
from trinity_serve.inline import CallerExecutor, InprocShards
from trinity_serve.rank import RankRunner, ShardAccess, build_rank, open_grammars, routing_recorder


@dataclass
class RecordingSampler(Sampler):
    """Samples as usual and keeps the logits of every choice, position by position."""

    logits: dict[int, list[Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def sample(self, logits_RV: Tensor, choices: Sequence[SampledChoice]) -> list[Sample]:
        """See `Sampler.sample`."""
        for row_V, choice in zip(logits_RV, choices, strict=True):
            key = hash(tuple(choice.prompt_ids.tolist()))
            self.logits.setdefault(key, []).append(row_V.clone())
        return super().sample(logits_RV, choices)

    def of(self, prompt_ids: Sequence[int]) -> Tensor:
        """Return (outputs, V): the logits that each output of this prompt was chosen from."""
        return torch.stack(self.logits[hash(tuple(prompt_ids))])


@dataclass(frozen=True)
class Serving:
    """A loaded model behind an engine, with the logits it answered from."""

    engine: Engine
    runner: RankRunner
    sampler: RecordingSampler

    def run(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[list[int]]:
        """Generate for all prompts together; return each one's tokens."""
        for number, prompt in enumerate(prompts):
            self.engine.submit(GenerationRequest(f"r{number}", 0, tuple(prompt), params))
        tokens: dict[str, list[int]] = {f"r{number}": [] for number in range(len(prompts))}
        for event in drain(self.engine):
            assert event.error is None, event.error
            if event.token_id is not None:
                tokens[event.request_id].append(event.token_id)
        return list(tokens.values())


def drain(engine: Engine) -> Iterator[TokenEvent]:
    """Step until every request has ended."""
    for number in range(100_000):
        if not engine.has_work:
            return
        # A millisecond each: slower steps would let fewer prompt rows join.
        yield from engine.step(number / 1000)
    raise AssertionError("the engine does not come to an end")


def config_for(
    checkpoint: Path, *, num_shards: int = 1, kernels: str = "auto", dtype: str = "auto"
) -> ServeConfig:
    """Return an inline configuration of a small server."""
    return parse_serve_args(
        {
            "mode": "inline",
            "model": {"path": str(checkpoint), "kernels": kernels, "dtype": dtype},
            "experts": {"num_shards": num_shards},
            "attention": {"kv_memory_bytes": "64MiB", "max_num_seqs": 40},
        }
    )


def open_serving(config: ServeConfig, **engine_sizes: int) -> Serving:
    """Load shards and rank in this process; `engine_sizes` override what follows from `config`."""
    checkpoint = Checkpoint.open(config.model.path)
    arithmetic = Arithmetic.settle(config, checkpoint)
    shards = InprocShards(config, checkpoint, arithmetic)
    access = ShardAccess(shards.connect, CallerExecutor())
    return serving_over(config, checkpoint, (access, shards.placement), **engine_sizes)


def serving_over(
    config: ServeConfig,
    checkpoint: Checkpoint,
    shards: tuple[ShardAccess, Placement],
    **engine_sizes: int,
) -> Serving:
    """Load a rank in this process over shards that are somewhere else."""
    arithmetic = Arithmetic.settle(config, checkpoint)
    access, placement = shards
    runner, sizes = build_rank(config, checkpoint, arithmetic, access, Metrics())
    runner.dispatcher.publish(placement)
    sampler = RecordingSampler()
    engine_config = replace(sizes, **engine_sizes)  # type: ignore[arg-type]
    engine = Engine(
        runner,
        engine_config,
        sampler,
        open_grammars(checkpoint),
        routing_recorder(runner, checkpoint.config),
    )
    return Serving(engine, runner, sampler)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread for a while: its float32 sums may differ between one and two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
