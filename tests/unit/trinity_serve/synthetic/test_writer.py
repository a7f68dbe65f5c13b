from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from cluster.errors import CheckpointError, ConfigError
from cluster.model_config import AfmoeConfig
from experts.checkpoint import Checkpoint
from experts.tensor_names import tensor_shapes
from tests.oracle.afmoe_oracle import OracleWeights, oracle_forward
from trinity_serve.model.describe import describe
from trinity_serve.synthetic import PRESETS, slice_of, write_checkpoint, writer
from trinity_serve.synthetic.weights import make_tensor

HUB_FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
}


@pytest.fixture
def small_config(tiny_config: AfmoeConfig) -> AfmoeConfig:
    """Without tokenizer, so that many can be written."""
    return replace(tiny_config, vocab_size=64)


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_folder_has_the_files_of_the_hub(tiny_checkpoint: Path) -> None:
    names = {path.name for path in tiny_checkpoint.iterdir()}
    weights = {name for name in names if name.endswith(".safetensors")}
    assert names - weights == HUB_FILES
    assert weights == {f"model-{i:05d}-of-00005.safetensors" for i in range(1, 6)}


def test_the_index_lists_every_tensor_and_the_total_size(
    tiny_checkpoint: Path, tiny_config: AfmoeConfig
) -> None:
    index = json.loads((tiny_checkpoint / "model.safetensors.index.json").read_text())
    assert list(index["weight_map"]) == sorted(name for name, _ in tensor_shapes(tiny_config))
    assert index["metadata"] == {"total_size": describe(tiny_config).num_bytes}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_safetensors_library_reads_what_was_generated(
    small_config: AfmoeConfig, tmp_path: Path, dtype: str
) -> None:
    config = replace(small_config, dtype=dtype)  # type: ignore[arg-type]
    write_checkpoint(config, tmp_path / "c", seed=5)
    read: dict[str, Tensor] = {}
    for path in (tmp_path / "c").glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
            read |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, shape in tensor_shapes(config):
        assert torch.equal(read.pop(name), make_tensor(name, shape, config, 5, config.dtype))
    assert read == {}


def test_only_the_expert_bias_stays_float32_in_a_bfloat16_checkpoint(
    small_config: AfmoeConfig, tmp_path: Path
) -> None:
    path = write_checkpoint(small_config, tmp_path / "c", dtype="bfloat16")
    checkpoint = Checkpoint.open(str(path))
    float32 = {
        name
        for name, shape in tensor_shapes(checkpoint.config)
        if checkpoint.tensor(name, shape).dtype == torch.float32
    }
    assert float32 == {f"model.layers.{layer}.mlp.expert_bias" for layer in range(1, 6)}


def test_one_seed_gives_the_same_bytes_and_another_gives_others(
    tiny_config: AfmoeConfig, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    again = write_checkpoint(tiny_config, tmp_path / "again")
    other = write_checkpoint(tiny_config, tmp_path / "other", seed=1)
    assert all_bytes(again) == all_bytes(tiny_checkpoint)
    changed = {
        name for name, content in all_bytes(other).items() if content != all_bytes(again)[name]
    }
    assert changed == {path.name for path in again.glob("*.safetensors")}


def test_known_bits_are_written_on_every_machine(tiny_config: AfmoeConfig) -> None:
    values = make_tensor("model.norm.weight", (4,), tiny_config, 0, "float32")
    assert values.tolist() == [
        0.5685364007949829,
        0.5110723972320557,
        1.216273546218872,
        1.0037699937820435,
    ]


def test_a_large_tensor_is_generated_in_pieces_of_one_stream(tiny_config: AfmoeConfig) -> None:
    shape = (4100, 1100)
    whole = make_tensor("model.layers.0.mlp.up_proj.weight", shape, tiny_config, 0, "bfloat16")
    rows = make_tensor("model.layers.0.mlp.up_proj.weight", (8, 1100), tiny_config, 0, "bfloat16")
    assert torch.equal(whole[:8], rows)
    assert not torch.equal(whole[-8:], rows)


def test_progress_grows_to_the_total(small_config: AfmoeConfig, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_checkpoint(small_config, tmp_path / "c", progress=lambda *step: seen.append(step))
    total = describe(small_config).num_bytes
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (total, total)


def test_an_interrupted_write_leaves_nothing(small_config: AfmoeConfig, tmp_path: Path) -> None:
    def interrupt(written_bytes: int, total_bytes: int) -> None:
        assert not (tmp_path / "c").exists()
        if written_bytes > total_bytes // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(small_config, tmp_path / "c", progress=interrupt)
    assert os.listdir(tmp_path) == []


def test_an_existing_path_is_never_overwritten(small_config: AfmoeConfig, tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    with pytest.raises(CheckpointError, match="nothing is yet"):
        write_checkpoint(small_config, tmp_path / "c")
    assert os.listdir(tmp_path / "c") == []


def test_a_disk_with_too_little_room_is_refused_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "free_bytes", lambda folder: 10**9)
    with pytest.raises(CheckpointError, match=r"797\.3 GB of free disk"):
        write_checkpoint("large", tmp_path / "c")
    assert os.listdir(tmp_path) == []


def test_an_unknown_preset_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'huge'.*demo, tiny, small"):
        write_checkpoint("huge", tmp_path / "c")


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [
        ("demo", 0.0433),
        ("tiny", 0.16),
        ("small", 2.15),
        ("nano", 12.24),
        ("mini", 52.25),
        ("large", 797.27),
    ],
)
def test_presets_have_their_published_size(name: str, gigabytes: float) -> None:
    assert describe(PRESETS[name]).num_bytes / 1e9 == pytest.approx(gigabytes, rel=0.02)


def test_a_slice_of_large_keeps_the_shape_of_every_matrix() -> None:
    full, thin = dict(tensor_shapes(PRESETS["large"])), dict(tensor_shapes(PRESETS["large-slice"]))
    name = "model.layers.{}.mlp.experts.255.down_proj.weight"
    assert thin[name.format(3)] == full[name.format(59)] == (3072, 3072)
    assert thin["model.layers.0.self_attn.q_proj.weight"] == (6144, 3072)
    assert PRESETS["large-slice"].is_global(3)


def test_a_slice_may_have_fewer_experts() -> None:
    assert slice_of(PRESETS["mini"], 4, 1, num_experts=16).num_experts == 16


def test_every_expert_is_hit_by_a_few_thousand_tokens(tmp_path: Path) -> None:
    config = slice_of(PRESETS["demo"], num_layers=4, num_dense_layers=1)
    weights = OracleWeights.load(write_checkpoint(config, tmp_path / "demo", dtype="float32"))
    ids_T = torch.arange(13, 13 + 2000) % config.vocab_size
    for layer_ids_TK in oracle_forward(weights, ids_T).topk_ids:
        assert len(set(layer_ids_TK.flatten().tolist())) == 256


def test_control_tokens_other_than_end_of_turn_are_never_the_likeliest(
    tiny_checkpoint: Path,
) -> None:
    logits_TV = oracle_forward(tiny_checkpoint, list(range(13, 213))).logits_TV
    assert logits_TV[:, [0, 1, 2, *range(4, 13)]].abs().max() == 0
    assert logits_TV[:, 3].abs().max() > 0
    assert int(logits_TV.argmax(dim=1).min()) not in range(3)
