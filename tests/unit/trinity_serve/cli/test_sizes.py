"""What `trinity checkpoint inspect` says about a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from trinity_serve.cli.main import main
from trinity_serve.cli.sizes import description_lines, human_bytes, human_count, shards_needed
from trinity_serve.model.describe import ModelDescription, describe
from trinity_serve.synthetic import PRESETS


@pytest.fixture(scope="module")
def large() -> ModelDescription:
    config = PRESETS["large"]
    return describe(config, shard_counts=range(1, config.num_experts + 1))


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.6, "1 kB"),
        (1_000, "1 kB"),
        (56_623_104, "56.6 MB"),
        (797_270_599_680, "797 GB"),
        (5e16, "5e+04 TB"),
    ],
)
def test_bytes_are_told_in_three_digits(number: float, text: str) -> None:
    assert human_bytes(number) == text


def test_counts_are_told_in_three_digits() -> None:
    assert human_count(398_635_286_016) == "399 B"
    assert human_count(12) == "12"


def test_the_fewest_shards_that_fit_are_named(large: ModelDescription) -> None:
    fit = shards_needed(large, 24)
    assert fit is not None
    assert fit.num_bytes <= 24 * 2**30
    one_less = large.shards[fit.num_shards - 2]
    assert one_less.num_bytes > 24 * 2**30


def test_a_memory_in_which_nothing_fits_is_said_to_be_too_small(large: ModelDescription) -> None:
    assert shards_needed(large, 0.1) is None
    assert list(description_lines("m", large, 0.1))[-1].endswith(
        "not even one expert per layer fits"
    )


def test_routed_experts_are_98_percent_of_large(large: ModelDescription) -> None:
    """The README says so."""
    (line,) = [line for line in description_lines("m", large, 24) if line.startswith("routed")]
    assert line.endswith("98.2 %")


def test_inspect_tells_layers_experts_sizes_and_places(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["checkpoint", "inspect", str(tiny_checkpoint)]) == 0
    out = capsys.readouterr().out
    for word in ("layers", "experts", "routed experts", "attention rank", "1 shard ", "GiB"):
        assert word in out


def test_a_written_checkpoint_can_be_inspected_and_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "demo")
    assert main(["checkpoint", "write", "demo", path, "--dtype", "float32"]) == 0
    assert main(["checkpoint", "inspect", path]) == 0
    assert "AFMoE in float32" in capsys.readouterr().out
    assert main(["checkpoint", "write", "demo", path]) == 2
    assert "something there" in capsys.readouterr().err


def test_a_folder_without_a_checkpoint_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["checkpoint", "inspect", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
