"""The oracle is bit for bit transformers' eager model, over a matrix of shapes that we wrote."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AfmoeForCausalLM

from cluster.model_config import AfmoeConfig, LayerType
from cluster.torch_dtypes import TORCH_DTYPES
from cluster.types import ComputeDtype
from experts.checkpoint import Checkpoint
from experts.tensor_names import tensor_shapes
from tests.conftest import TINY_CONFIG
from tests.oracle.afmoe_oracle import OracleWeights, oracle_forward
from trinity_serve.synthetic import PRESETS, slice_of, write_checkpoint

SLIDING, GLOBAL = LayerType.SLIDING, LayerType.GLOBAL
WINDOW = 8
BASE = replace(
    TINY_CONFIG,
    vocab_size=96,
    num_hidden_layers=4,
    layer_types=(SLIDING, SLIDING, SLIDING, GLOBAL),
    sliding_window=WINDOW,
)

SHAPES: dict[str, AfmoeConfig] = {
    "base": BASE,
    "irregular layers": replace(BASE, layer_types=(GLOBAL, SLIDING, GLOBAL, GLOBAL)),
    "only sliding layers": replace(BASE, layer_types=(SLIDING,) * 4),
    "only global layers": replace(BASE, layer_types=(GLOBAL,) * 4),
    "no dense layer": replace(BASE, num_dense_layers=0),
    "three dense layers": replace(BASE, num_dense_layers=3),
    "one KV head": replace(BASE, num_key_value_heads=1),
    "six query heads per KV head": replace(BASE, num_attention_heads=12),
    "no grouping of heads": replace(BASE, num_key_value_heads=4),
    "heads narrower than hidden": replace(BASE, head_dim=6),
    "muP off": replace(BASE, mup_enabled=False),
    "three shared experts": replace(BASE, num_shared_experts=3),
    "128 experts top 8": replace(BASE, num_experts=128, num_experts_per_tok=8),
    "256 experts top 4": replace(BASE, num_experts=256),
    "one expert per token": replace(BASE, num_experts_per_tok=1),
    "every expert for each token": replace(BASE, num_experts=4),
    "other rotary base and scale": replace(BASE, rope_theta=500.0, route_scale=0.7),
    "the tests' own checkpoint": TINY_CONFIG,
}


def load_transformers(path: Path, dtype: ComputeDtype = "float32") -> AfmoeForCausalLM:
    model = AfmoeForCausalLM.from_pretrained(
        path,
        attn_implementation="eager",
        experts_implementation="eager",
        dtype=TORCH_DTYPES[dtype],
    )
    for parameter in model.parameters():
        # Views of a file map otherwise, and float32 products depend on alignment.
        parameter.data = parameter.data.clone()
    assert isinstance(model, AfmoeForCausalLM)
    return model


def transformers_logits(model: AfmoeForCausalLM, ids_T: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(ids_T[None]).logits[0]
    return logits


def random_ids(length: int, vocab_size: int) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(13, vocab_size, (length,), generator=generator)


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())
def test_logits_equal_those_of_transformers(config: AfmoeConfig, tmp_path: Path) -> None:
    path = write_checkpoint(config, tmp_path / "checkpoint", seed=7)
    ids_T = random_ids(config.sliding_window * 3 + 5, config.vocab_size)

    expected_TV = transformers_logits(load_transformers(path), ids_T)

    assert torch.equal(oracle_forward(path, ids_T).logits_TV, expected_TV)


@pytest.fixture(scope="module")
def base_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(BASE, tmp_path_factory.mktemp("base") / "checkpoint", seed=3)


def test_logits_are_equal_on_both_sides_of_the_window(base_path: Path) -> None:
    model, weights = load_transformers(base_path), OracleWeights.load(base_path)
    for length in (1, 2, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW, 2 * WINDOW + 1):
        ids_T = random_ids(length, BASE.vocab_size)
        logits_TV = oracle_forward(weights, ids_T).logits_TV
        assert torch.equal(logits_TV, transformers_logits(model, ids_T)), f"length {length}"


def test_bfloat16_logits_equal_those_of_transformers(base_path: Path) -> None:
    ids_T = random_ids(29, BASE.vocab_size)
    logits_TV = oracle_forward(OracleWeights.load(base_path, "bfloat16"), ids_T).logits_TV
    assert torch.equal(
        logits_TV, transformers_logits(load_transformers(base_path, "bfloat16"), ids_T)
    )


@pytest.mark.parametrize(
    "changed",
    [
        {"sliding_window": WINDOW - 1},
        {"sliding_window": WINDOW + 1},
        {"mup_enabled": False},
        {"layer_types": (SLIDING,) * 4},
        {"route_scale": 1.0},
        {"num_experts_per_tok": 3},
        {"rope_theta": 1000.0},
    ],
    ids=str,
)
def test_a_broken_rule_moves_the_logits_far(base_path: Path, changed: dict[str, object]) -> None:
    """What makes equality above mean something: no rule is invisible in these weights."""
    weights = OracleWeights.load(base_path)
    broken = OracleWeights(replace(BASE, **changed), weights.tensors)  # type: ignore[arg-type]
    ids_T = random_ids(37, BASE.vocab_size)
    right, wrong = (oracle_forward(each, ids_T).logits_TV for each in (weights, broken))
    assert (right - wrong).abs().max() > 0.1


def test_ignoring_the_expert_bias_changes_some_picks_and_not_all(base_path: Path) -> None:
    weights = OracleWeights.load(base_path)
    no_bias = {
        name: torch.zeros_like(tensor) if name.endswith("expert_bias") else tensor
        for name, tensor in weights.tensors.items()
    }
    ids_T = random_ids(200, BASE.vocab_size)
    first_layer = [
        oracle_forward(each, ids_T).topk_ids[0].sort(dim=1).values
        for each in (weights, OracleWeights(BASE, no_bias))
    ]
    changed = (first_layer[0] != first_layer[1]).any(dim=1).float().mean()
    assert 0.02 < changed < 0.7


def test_a_checkpoint_saved_by_transformers_reads_back_equal(
    base_path: Path, tmp_path: Path
) -> None:
    load_transformers(base_path).save_pretrained(tmp_path / "saved")

    ours, saved = Checkpoint.open(str(base_path)), Checkpoint.open(str(tmp_path / "saved"))

    assert saved.config == ours.config
    for name, shape in tensor_shapes(ours.config):
        assert torch.equal(saved.tensor(name, shape), ours.tensor(name, shape)), name


def test_a_sharded_bfloat16_save_of_transformers_reads_back_equal(
    base_path: Path, tmp_path: Path
) -> None:
    """transformers rounds expert_bias to bfloat16 there; the reader takes both dtypes."""
    model = load_transformers(base_path, "bfloat16")
    model.save_pretrained(tmp_path / "saved", max_shard_size="100KB")

    saved = Checkpoint.open(str(tmp_path / "saved"))

    assert saved.is_indexed
    assert saved.config == replace(BASE, dtype="bfloat16")
    ours = OracleWeights.load(base_path, "bfloat16")
    for name, shape in tensor_shapes(BASE):
        assert torch.equal(saved.tensor(name, shape), ours.tensors[name]), name


def test_greedy_text_of_the_demo_wanders(tmp_path: Path) -> None:
    config = slice_of(PRESETS["demo"], num_layers=4, num_dense_layers=1)
    path = write_checkpoint(config, tmp_path / "demo", dtype="float32")
    prompt_ids = random_ids(12, config.vocab_size)[None]

    # transformers types `self` of generate as a protocol that its own models do not match.
    output_ids = load_transformers(path).generate(  # type: ignore[misc]
        prompt_ids, max_new_tokens=64, min_new_tokens=64, do_sample=False
    )

    assert len(set(output_ids[0, 12:].tolist())) >= 16
