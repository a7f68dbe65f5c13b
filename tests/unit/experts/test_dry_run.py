"""All of Large over shards, without a weight: who reads what, and what does not fit is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.errors import CheckpointError, ConfigError
from experts.checkpoint import Checkpoint
from experts.dry_run import plan_loads
from experts.quantised.scheme import Form
from tests.support.quantised import SMALL
from trinity_serve.cli.main import main
from trinity_serve.synthetic import Recipe, write_checkpoint, write_checkpoint_outline

EXPERT_BYTES = 3 * 3072 * 3072 * 2


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 layers of 256 experts in FP8-Block: names, shapes and places."""
    path = tmp_path_factory.mktemp("large") / "checkpoint"
    return write_checkpoint_outline("large", path, Recipe(Form.FP8_BLOCK, scale_dtype="F32"))


@pytest.fixture(scope="module")
def opened(large: Path) -> Checkpoint:
    """Opening compares 85,000 names: once for all tests."""
    return Checkpoint.open(str(large))


def room_taken(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.iterdir())


def test_an_outline_has_the_published_size_and_takes_next_to_no_room(large: Path) -> None:
    size = sum(path.stat().st_size for path in large.glob("*.safetensors"))
    assert size / 1e9 == pytest.approx(400.0, abs=0.2)
    assert room_taken(large) < 60e6


def test_all_of_large_falls_to_sixteen_shards_that_fit(opened: Checkpoint) -> None:
    loads = plan_loads(opened, 16, memory_bytes=64 * 2**30)
    assert [load.num_experts for load in loads] == [54 * 16] * 16
    assert {load.held_bytes for load in loads} == {54 * 16 * EXPERT_BYTES}
    read = sum(load.read_bytes for load in loads)
    assert read == 54 * 256 * 3 * (3072 * 3072 + 24 * 24 * 4)
    # Scales and codes of a layer lie apart, each in one piece unless a file ends in it.
    assert all(load.num_ranges <= 2 * (54 + load.num_files) for load in loads)


def test_shares_are_uneven_by_at_most_an_expert_per_layer(opened: Checkpoint) -> None:
    experts = [load.num_experts for load in plan_loads(opened, 7)]
    assert sum(experts) == 54 * 256
    assert {count // 54 for count in experts} == {36, 37}


def test_what_does_not_fit_is_refused_with_what_it_would_take(opened: Checkpoint) -> None:
    with pytest.raises(ConfigError, match=rf"would hold {54 * 32 * EXPERT_BYTES} bytes"):
        plan_loads(opened, 8, memory_bytes=80 * 2**30)


def test_more_shards_than_experts_are_refused(opened: Checkpoint) -> None:
    with pytest.raises(ConfigError, match="1 to 256"):
        plan_loads(opened, 257)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_checkpoint_outline(SMALL, tmp_path / "small")


def test_an_outline_has_the_headers_of_the_checkpoint(small: Path, tmp_path: Path) -> None:
    whole = write_checkpoint(SMALL, tmp_path / "whole")
    for path in whole.glob("*.safetensors"):
        outline = (small / path.name).read_bytes()
        header_bytes = 8 + int.from_bytes(outline[:8], "little")
        assert outline[:header_bytes] == path.read_bytes()[:header_bytes]
        assert len(outline) == path.stat().st_size
        assert set(outline[header_bytes:]) == {0}
    assert plan_loads(Checkpoint.open(str(small)), 4) == plan_loads(Checkpoint.open(str(whole)), 4)


def change_header(folder: Path, name: str, changed: Callable[[dict[str, list[int]]], None]) -> None:
    """Change what the file says of a tensor, at the same length."""
    file = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][name]
    data = (folder / file).read_bytes()
    header_bytes = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + header_bytes])
    changed(header[name])
    text = json.dumps(header, separators=(",", ":")).encode().ljust(header_bytes)
    assert len(text) == header_bytes
    (folder / file).write_bytes(data[:8] + text + data[8 + header_bytes :])


def test_a_header_that_contradicts_the_configuration_is_found(small: Path) -> None:
    name = "model.layers.3.mlp.experts.9.down_proj.weight"
    change_header(small, name, lambda entry: entry["shape"].reverse())
    with pytest.raises(CheckpointError, match=r"experts\.9\.down_proj.*\[256, 64\].*\[64, 256\]"):
        plan_loads(Checkpoint.open(str(small)), 2)


def test_the_command_prints_a_line_per_shard_and_refuses_what_does_not_fit(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["checkpoint", "dry-run", str(small), "--shards", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines] == [["shard", str(n), "8"] for n in range(4)]
    assert main(["checkpoint", "dry-run", str(small), "--shards", "4", "--memory", "1e-6"]) == 2
    assert "would hold" in capsys.readouterr().err


def test_the_command_writes_outlines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "nano")
    assert main(["checkpoint", "write", "nano", path, "--outline", "--quantised", "w4a16"]) == 0
    assert room_taken(tmp_path / "nano") < 30e6
    assert main(["checkpoint", "inspect", path]) == 0
    assert "as w4a16, dequantised to bfloat16" in capsys.readouterr().out
    arguments = ["checkpoint", "write", "nano", str(tmp_path / "n"), "--outline", "--seed", "3"]
    assert main(arguments) == 2
    shutil.rmtree(tmp_path / "nano")
