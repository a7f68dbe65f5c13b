"""An attention rank, assembled: kernels, weights, KV, dispatcher, engine. Knows no Ray and no HTTP.

Both modes build it here: inline in the server's own process, on Ray inside an actor.
"""

from __future__ import annotations

import secrets
from concurrent.futures import Executor
from dataclasses import dataclass
from importlib import import_module

from torch import Tensor

from cluster.metrics import Metrics
from cluster.model_config import AfmoeConfig
from cluster.torch_dtypes import TORCH_DTYPES
from experts.checkpoint import Checkpoint
from router.config import DispatchConfig
from router.dispatcher import Dispatcher
from router.links import Connect, OnLost, ShardLinks
from router.recorder import RoutingRecorder
from router.sender import RankIdentity
from trinity_serve.api.tokenizer import TOKENIZER_FILE
from trinity_serve.arithmetic import Arithmetic
from trinity_serve.config import ServeConfig
from trinity_serve.engine.config import EngineConfig
from trinity_serve.engine.cpu_sampling import CpuVocabularyOps
from trinity_serve.engine.grammar import GrammarCompiler, GrammarMasks
from trinity_serve.engine.sampler import Sampler
from trinity_serve.model.assemble import ModelBackend, ModelSizes, assemble_model
from trinity_serve.model.batch import ForwardBatch
from trinity_serve.model.decoder import AfmoeModel
from trinity_serve.model.generation_config import GenerationDefaults
from trinity_serve.model.kernels import load_model_kernels
from trinity_serve.model.kernels.cpu.kernels import CpuModelKernels
from trinity_serve.model.kernels.cpu.vocabulary import CpuVocabulary
from trinity_serve.model.kv_sizing import KvDemand, KvSizes, size_kv
from trinity_serve.model.weights import load_weights


@dataclass(frozen=True)
class ShardAccess:
    """How a rank reaches shards: `connect` runs on `executor`."""

    connect: Connect
    executor: Executor
    on_lost: OnLost = lambda shard, reason: None


class RankRunner:
    """`ModelRunner` of a real rank: the model for steps, the dispatcher for idling."""

    def __init__(self, model: AfmoeModel, dispatcher: Dispatcher) -> None:
        self.vocab_size = model.vocab_size
        self.model = model
        self.dispatcher = dispatcher

    def forward(self, batch: ForwardBatch) -> Tensor:
        """Run one step. (R, V) float32."""
        return self.model.forward(batch)

    def wait(self, timeout_s: float) -> None:
        """Answer pings and mend links until the timeout or `wake`."""
        self.dispatcher.wait(timeout_s)

    def last_sign_at_s(self) -> float:
        """Return when the pass last reached a layer, or waited for one; thread-safe."""
        return self.dispatcher.last_sign_at_s

    def wake(self) -> None:
        """End `wait` early; thread-safe."""
        self.dispatcher.wake()


def build_rank(
    config: ServeConfig,
    checkpoint: Checkpoint,
    arithmetic: Arithmetic,
    access: ShardAccess,
    metrics: Metrics,
    rank: int = 0,
) -> tuple[RankRunner, EngineConfig]:
    """Load the rank's weights and return its runner and the engine's sizes.

    Blocks while weights load. Raises ConfigError and CheckpointError.
    """
    model_config, attention = arithmetic.config, config.attention
    max_model_len = config.model.max_model_len or model_config.max_position_embeddings
    demand = KvDemand(attention.max_num_seqs, max_model_len, attention.max_num_batched_tokens)
    element_bytes = TORCH_DTYPES[arithmetic.dtype].itemsize
    sizes = size_kv(model_config, demand, attention.kv_memory_bytes, element_bytes)
    backend = ModelBackend(arithmetic.kernels, load_model_kernels(config.model.kernels))
    weights = load_weights(checkpoint, arithmetic.kernels, arithmetic.dtype, backend.model.device)
    dispatch_config = DispatchConfig(
        coverage_grace_s=config.experts.coverage_grace_s,
        ping_every_s=config.experts.ping_interval_s,
        dead_after_s=config.experts.dead_after_s,
        hedge_factor=config.experts.hedge_factor,
        hedge_floor_s=config.experts.hedge_floor_s,
        hedge_share=config.experts.hedge_share,
    )
    # A random life number: a rank that starts again is never taken for the old one.
    identity = RankIdentity(rank, secrets.randbits(63), arithmetic.fingerprint.model)
    links = ShardLinks(access.connect, access.executor, dispatch_config, access.on_lost)
    dispatcher = Dispatcher(identity, links, dispatch_config, metrics, backend.planner)
    model_sizes = ModelSizes(sizes, max_model_len, attention.micro_batch_rows)
    model = assemble_model(model_config, weights, backend, dispatcher, model_sizes)
    return RankRunner(model, dispatcher), _engine_config(config, sizes, model_config, max_model_len)


def routing_recorder(runner: RankRunner, model: AfmoeConfig) -> RoutingRecorder:
    """Return what tells requests where their rows went."""
    return RoutingRecorder(runner.dispatcher, model.num_moe_layers, model.num_experts_per_tok)


def open_grammars(checkpoint: Checkpoint) -> GrammarMasks | None:
    """Return what holds a rank's outputs to grammars; None for a checkpoint without tokenizer."""
    path = checkpoint.path / TOKENIZER_FILE
    if not path.is_file():
        return None
    vocab_size = checkpoint.config.vocab_size
    defaults = GenerationDefaults.load(checkpoint.path, checkpoint.config)
    return GrammarMasks(GrammarCompiler(path, vocab_size, defaults.eos_token_ids), vocab_size)


def open_sampler(config: ServeConfig) -> Sampler:
    """Return what chooses a rank's tokens, in C or on the GPU where its model kernels are."""
    kernels = load_model_kernels(config.model.kernels)
    if isinstance(kernels, CpuModelKernels):
        return Sampler(CpuVocabularyOps(CpuVocabulary(kernels.library)))
    if kernels.name == "cuda":
        # Imported here: triton is not installed everywhere.
        sampler: Sampler = import_module("trinity_serve.engine.cuda_sampling").open_on(
            kernels.device
        )
        return sampler
    return Sampler()


def _engine_config(
    config: ServeConfig, sizes: KvSizes, model: AfmoeConfig, max_model_len: int
) -> EngineConfig:
    attention = config.attention
    return EngineConfig(
        num_global_blocks=sizes.num_global_blocks,
        num_sliding_blocks=sizes.num_sliding_blocks,
        sliding_window=model.sliding_window,
        max_model_len=max_model_len,
        max_num_seqs=attention.max_num_seqs,
        max_num_batched_tokens=attention.max_num_batched_tokens,
        max_prefill_chunk=attention.max_prefill_chunk,
        max_waiting=attention.max_waiting,
        max_mixed_step_s=attention.max_mixed_step_s,
    )
