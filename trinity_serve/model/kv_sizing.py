"""How many KV blocks of each pool fit into a rank's memory."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.errors import ConfigError
from cluster.model_config import AfmoeConfig
from trinity_serve.model.batch import KV_BLOCK_SIZE


@dataclass(frozen=True, slots=True)
class KvSizes:
    """Blocks of 32 positions in each pool."""

    num_global_blocks: int
    num_sliding_blocks: int


@dataclass(frozen=True, slots=True)
class KvDemand:
    """What a rank's sequences may need at once."""

    max_num_seqs: int
    max_model_len: int
    max_step_rows: int
    """Rows that one step may add to one sequence."""


def block_bytes(config: AfmoeConfig, num_layers: int, element_bytes: int) -> int:
    """Return the bytes of one block in `num_layers` layers: K and V of 32 positions each."""
    per_position = 2 * config.num_key_value_heads * config.head_dim * element_bytes
    return num_layers * KV_BLOCK_SIZE * per_position


def size_kv(
    config: AfmoeConfig, demand: KvDemand, memory_bytes: int, element_bytes: int
) -> KvSizes:
    """Split `memory_bytes` between the pools.

    The sliding pool takes what `max_num_seqs` sequences can hold at most, but no more than half of
    the memory unless one sequence alone needs it; the rest is for the global layers, whose need
    grows with the context. Neither pool is larger than its sequences can fill.

    Raises:
        ConfigError: one sequence of `max_model_len` tokens does not fit.
    """
    num_global = sum(config.is_global(i) for i in range(config.num_hidden_layers))
    global_bytes = block_bytes(config, num_global, element_bytes)
    sliding_bytes = block_bytes(config, config.num_hidden_layers - num_global, element_bytes)
    global_per_seq = -(-demand.max_model_len // KV_BLOCK_SIZE)
    window_span = config.sliding_window + demand.max_step_rows
    sliding_per_seq = min(-(-window_span // KV_BLOCK_SIZE) + 1, global_per_seq)
    needed = sliding_per_seq * sliding_bytes + global_per_seq * global_bytes
    if needed > memory_bytes:
        raise ConfigError(
            "attention",
            "kv_memory_bytes",
            f"{memory_bytes} bytes do not hold one sequence of {demand.max_model_len} tokens",
            f"at least {needed} bytes, or a smaller model.max_model_len",
        )
    half = memory_bytes // 2 // max(1, sliding_bytes)
    wanted = demand.max_num_seqs * sliding_per_seq
    num_sliding = max(sliding_per_seq, min(wanted, half))
    left = memory_bytes - num_sliding * sliding_bytes
    num_global_blocks = max(global_per_seq, left // max(1, global_bytes))
    if num_global_blocks * global_bytes + num_sliding * sliding_bytes > memory_bytes:
        num_sliding = (memory_bytes - global_per_seq * global_bytes) // max(1, sliding_bytes)
        num_global_blocks = global_per_seq
    return KvSizes(min(num_global_blocks, demand.max_num_seqs * global_per_seq), num_sliding)
