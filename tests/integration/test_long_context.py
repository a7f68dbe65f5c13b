"""Long contexts run to the end, see their first tokens, and keep the sliding layers' KV small."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cluster.model_config import AfmoeConfig, LayerType
from tests.oracle.afmoe_oracle import OracleWeights, oracle_forward
from tests.support.serving import Serving, open_serving
from trinity_serve.config import parse_serve_args
from trinity_serve.engine.request import GenerationRequest, SamplingParams
from trinity_serve.model.batch import KV_BLOCK_SIZE
from trinity_serve.synthetic import write_checkpoint
from trinity_serve.synthetic.presets import PRESETS

ONE_TOKEN = SamplingParams(max_tokens=1, seed=0, temperature=0.0, ignore_eos=True)
FILLER, NEEDLE, ASK, NEEDLE_AT = 20, 77, 130, 5
SHARPNESS = 16.0
STEP_ROWS = 512

THIN = replace(
    PRESETS["tiny"],
    vocab_size=512,
    hidden_size=64,
    intermediate_size=64,
    moe_intermediate_size=16,
    num_hidden_layers=2,
    num_dense_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    num_experts=8,
    head_dim=32,
    max_position_embeddings=524_288,
    layer_types=(LayerType.SLIDING, LayerType.GLOBAL),
)


def write_pointed(config: AfmoeConfig, path: Path) -> Path:
    """Write a checkpoint whose global layers put nearly all weight on one key.

    Against a filler that repeats, every head whose query likes the needle better than the filler
    then reads the needle alone, however long the filler is.
    """
    write_checkpoint(config, path)
    for file in path.glob("*.safetensors"):
        tensors = load_file(file)
        for name, tensor in tensors.items():
            if name.endswith(".q_norm.weight") and config.is_global(int(name.split(".")[2])):
                tensors[name] = tensor * SHARPNESS
        save_file(tensors, file)
    return path


def serving_of(checkpoint: Path) -> Serving:
    return open_serving(
        parse_serve_args(
            {
                "mode": "inline",
                "model": {"path": str(checkpoint)},
                "attention": {
                    "kv_memory_bytes": "512MiB",
                    "max_num_seqs": 1,
                    "max_num_batched_tokens": STEP_ROWS,
                    "max_prefill_chunk": STEP_ROWS,
                },
            }
        )
    )


def prompt_of(length: int, needle: int) -> list[int]:
    ids = [FILLER] * length
    ids[NEEDLE_AT], ids[-1] = needle, ASK
    return ids


def last_logits(serving: Serving, config: AfmoeConfig, ids: list[int]) -> Tensor:
    """Run a prompt to the end, watching the sliding pool after every step."""
    most = -(-(config.sliding_window + STEP_ROWS) // KV_BLOCK_SIZE) + 1
    serving.engine.submit(GenerationRequest("long", 0, tuple(ids), ONE_TOKEN))
    tokens = []
    for step in range(len(ids)):
        if not serving.engine.has_work:
            break
        tokens += serving.engine.step(float(step))
        assert serving.engine.stats().extra["sliding_blocks_held"] <= most
    assert [event.error for event in tokens] == [None]
    return serving.sampler.of(ids)[-1]


def check_needle(config: AfmoeConfig, length: int, path: Path) -> None:
    """The last row's logits depend on a token that no chain of sliding layers reaches."""
    sliding = [kind for kind in config.layer_types if kind is LayerType.SLIDING]
    assert len(sliding) * config.sliding_window < length - NEEDLE_AT
    serving = serving_of(write_pointed(config, path))
    with_needle = last_logits(serving, config, prompt_of(length, NEEDLE))
    without = last_logits(serving, config, prompt_of(length, FILLER))
    moved = float((with_needle - without).abs().max())
    # A hundred times the needle's even share among all keys: attention points at it.
    assert moved > 100 / length * float(without.abs().max())


def test_a_needle_at_the_start_is_read_as_the_oracle_reads_it(
    tiny_config: AfmoeConfig, tmp_path: Path
) -> None:
    config = replace(tiny_config, max_position_embeddings=4096)
    checkpoint = write_pointed(config, tmp_path / "model")
    ids = prompt_of(2000, NEEDLE)
    ours = last_logits(serving_of(checkpoint), config, ids)
    theirs = oracle_forward(OracleWeights.load(checkpoint), ids).logits_TV[-1]
    assert float((ours - theirs).abs().max()) <= 1e-3 * float(theirs.abs().max())


def test_a_needle_is_seen_over_eight_thousand_tokens(
    tiny_config: AfmoeConfig, tmp_path: Path
) -> None:
    config = replace(tiny_config, max_position_embeddings=16_384)
    check_needle(config, 8_192, tmp_path / "model")


def test_a_thin_model_sees_a_needle_over_sixteen_thousand_tokens(tmp_path: Path) -> None:
    check_needle(replace(THIN, max_position_embeddings=32_768), 16_384, tmp_path / "model")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_tiny_sees_a_needle_over_128k_tokens(tmp_path: Path) -> None:
    config = replace(PRESETS["tiny"], max_position_embeddings=131_072)
    check_needle(config, 131_070, tmp_path / "model")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_thin_model_sees_a_needle_over_512k_tokens(tmp_path: Path) -> None:
    check_needle(THIN, 524_286, tmp_path / "model")


def test_logits_are_finite_at_the_last_position_of_the_context(
    tiny_config: AfmoeConfig, tmp_path: Path
) -> None:
    config = replace(tiny_config, max_position_embeddings=4096)
    serving = serving_of(write_pointed(config, tmp_path / "model"))
    assert bool(torch.isfinite(last_logits(serving, config, prompt_of(4095, NEEDLE))).all())
