"""Checkpoints that every suite shares, written once per run."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.model_config import AfmoeConfig, LayerType
from trinity_serve.synthetic import write_checkpoint

SLIDING, GLOBAL = LayerType.SLIDING, LayerType.GLOBAL

TINY_CONFIG = AfmoeConfig(
    vocab_size=512,
    hidden_size=32,
    intermediate_size=48,
    moe_intermediate_size=16,
    num_hidden_layers=6,
    num_dense_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    num_experts=16,
    num_experts_per_tok=4,
    num_shared_experts=1,
    route_scale=2.448,
    rms_norm_eps=1e-5,
    rope_theta=10_000.0,
    sliding_window=40,
    max_position_embeddings=1024,
    mup_enabled=True,
    layer_types=(SLIDING, SLIDING, SLIDING, GLOBAL, SLIDING, GLOBAL),
    dtype="float32",
    bos_token_id=0,
    eos_token_id=(3,),
)
"""Every feature in the smallest shape: the window ends inside a KV block, experts of 8 shards are
uneven against 3, heads are wider than the hidden size, the layer pattern is irregular."""


@pytest.fixture(scope="session")
def tiny_config() -> AfmoeConfig:
    """The configuration of `tiny_checkpoint`."""
    return TINY_CONFIG


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 checkpoint with tokenizer, well under a megabyte. Read only."""
    return write_checkpoint(TINY_CONFIG, tmp_path_factory.mktemp("tiny") / "checkpoint")
