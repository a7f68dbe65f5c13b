"""How large an engine is: its KV pools, its step and its queues."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.errors import ConfigError
from trinity_serve.model.batch import KV_BLOCK_SIZE


def blocks_for(num_positions: int) -> int:
    """Return how many KV blocks hold positions 0 … num_positions - 1."""
    return -(-num_positions // KV_BLOCK_SIZE)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Sizes of one engine; nothing here changes an output, only when it comes.

    `max_num_batched_tokens` bounds the rows of a step. `max_prefill_chunk` bounds the prefill rows
    of a step in which other sequences decode, and so their inter-token gap; a step without
    decodes prefills up to the whole budget, because experts are read once per step and larger
    chunks spread that read over more rows. `max_mixed_step_s` bounds the time of a step in which
    prompt rows join decodes, as far as earlier steps foretell it; None: time does not count.
    `max_scored_rows` bounds the prompt rows of a step whose
    logits are wanted: of 200,192 columns each takes 0.8 MB.

    Raises `ConfigError` when the sizes contradict each other.
    """

    num_global_blocks: int
    num_sliding_blocks: int
    sliding_window: int
    max_model_len: int
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    max_prefill_chunk: int = 512
    max_waiting: int = 1024
    max_scored_rows: int = 128
    prefix_cache: bool = True
    max_mixed_step_s: float | None = None

    def __post_init__(self) -> None:
        for name in (
            "sliding_window",
            "max_model_len",
            "max_num_seqs",
            "max_prefill_chunk",
            "max_scored_rows",
        ):
            _require(name, getattr(self, name), 1)
        _require("max_waiting", self.max_waiting, 0)
        _require("num_global_blocks", self.num_global_blocks, 1)
        _require("num_sliding_blocks", self.num_sliding_blocks, self.max_sliding_blocks_per_seq)
        # Every running sequence may need one row per step.
        _require("max_num_batched_tokens", self.max_num_batched_tokens, self.max_num_seqs)
        if self.max_prefill_chunk > self.max_num_batched_tokens:
            raise ConfigError(
                "engine",
                "max_prefill_chunk",
                f"{self.max_prefill_chunk} is larger than the step",
                f"at most max_num_batched_tokens ({self.max_num_batched_tokens})",
            )

    @property
    def context_limit(self) -> int:
        """The longest sequence, in tokens: the model's limit, or what the global pool holds."""
        return min(self.max_model_len, self.num_global_blocks * KV_BLOCK_SIZE)

    @property
    def max_sliding_blocks_per_seq(self) -> int:
        """The most sliding blocks that one sequence holds at a time.

        A step of c rows from position p reads p - W + 1 … p + c - 1: W - 1 + c positions, which may
        begin anywhere in a block.
        """
        span = self.sliding_window - 1 + self.max_num_batched_tokens
        return min((span + KV_BLOCK_SIZE - 2) // KV_BLOCK_SIZE + 1, blocks_for(self.context_limit))

    @property
    def max_blocks_per_seq(self) -> int:
        """Block-table columns."""
        return blocks_for(self.context_limit)


def _require(key: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError("engine", key, f"{value} is too small", f"at least {least}")
