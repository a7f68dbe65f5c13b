"""`trinity plan`: what it prints, what it writes, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from experts.quantised.scheme import Form
from trinity_serve.cli import plan as plan_module
from trinity_serve.cli.main import main
from trinity_serve.cli.measure import Probe, measure_here
from trinity_serve.config import find_problems, load_serve_config
from trinity_serve.model.kv_sizing import KvDemand, size_kv
from trinity_serve.planning.figures import DeviceFigures
from trinity_serve.synthetic import PRESETS, slice_of
from trinity_serve.synthetic.recipe import Recipe
from trinity_serve.synthetic.writer import write_checkpoint_outline

LARGE = ["plan", "--model", "large", "--gpus", "8xH200", "--experts", "fp8", "--rest", "fp8"]


def printed(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main([*LARGE, *args]) == 0
    return capsys.readouterr().out


def test_three_layouts_stand_side_by_side_with_a_verdict(
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = printed(capsys, "--nodes", "2", "--context", "128K")
    assert "16 GPUs in 2 nodes: H200-141" in out
    assert "8.81 GB per sequence of 131,072 tokens" in out
    (head,) = [
        line for line in out.splitlines() if line.split() == ["co-located", "separate", "mixed"]
    ]
    (rates,) = [line for line in out.splitlines() if line.startswith("tokens/s  ")]
    assert len(rates) == len(head)
    assert len(rates.split()) == 4
    assert "of what the same GPUs give co-located" in out
    assert "an upper bound until measured" in out
    assert max(map(len, out.splitlines()[:20])) <= 180


def test_json_has_the_same_and_what_it_was_computed_from(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = json.loads(printed(capsys, "--streams", "64", "--json"))
    assert found["choice"] == "co-located"
    assert found["cluster"]["gpu"]["name"] == "H200-141"
    assert found["workload"] == {"context_tokens": 8192, "streams": 64, "tokens_per_s": None}
    together = found["layouts"]["co-located"]
    assert together["streams"] == 64
    assert together["tokens_per_s"] == pytest.approx(64 / together["seconds_per_token"])


@pytest.mark.parametrize("layout", ["co-located", "separate", "mixed"])
def test_the_file_it_writes_passes_the_check_and_holds_what_was_planned(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ray_config.yaml"
    args = ["--nodes", "2", "--context", "32K", "--copies", "2", "--layout", layout]
    found = json.loads(printed(capsys, *args, "--json", "--out", str(path)))["layouts"][layout]
    assert find_problems(path) == []
    config = load_serve_config(path)
    assert config.attention.num_replicas == found["ranks"]
    assert config.experts.num_shards == found["shards"]
    assert config.experts.num_replicas == 2
    assert config.model.max_model_len == 32_768
    assert config.attention.max_num_seqs * found["ranks"] >= found["streams"]
    demand = KvDemand(1, 32_768, config.attention.max_num_batched_tokens)
    sizes = size_kv(PRESETS["large"], demand, config.attention.kv_memory_bytes, 2)
    assert sizes.num_global_blocks >= 32_768 // 32
    gpus = config.attention.resources.num_gpus * found["ranks"]
    gpus += config.experts.resources.num_gpus * found["shards"]
    assert gpus == found["gpus"]


def test_what_is_counted_and_not_served_yet_stands_in_table_and_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ray_config.yaml"
    out = printed(capsys, "--kv", "fp8", "--out", str(path))
    for text in (out, path.read_text()):
        assert "Loading widens them to bf16" in text
        assert "FP8 for KV is counted and not built" in text
    assert find_problems(path) == []
    assert main(["plan", "--model", "large", "--gpus", "16xH200"]) == 0
    assert "so far" not in capsys.readouterr().out


def test_without_a_layout_the_file_is_of_the_fastest_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ray_config.yaml"
    assert main([*LARGE, "--out", str(path)]) == 0
    assert capsys.readouterr().err == f"wrote {path}: co-located\n"
    assert find_problems(path) == []


def test_a_rate_out_of_reach_has_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LARGE, "--rate", "1000000"]) == 1
    assert "are not reached" in capsys.readouterr().out


def test_figures_and_assumptions_are_changed_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    changes = ["memory_bytes=2e11", "imbalance=1.5", "max_micro_batches=4", "cpu.memory_bytes=1e12"]
    sets = [word for change in changes for word in ("--set", change)]
    found = json.loads(printed(capsys, *sets, "--arithmetic", "fp8", "--json"))
    assert found["cluster"]["gpu"]["memory_bytes"] == 2e11
    assert found["cluster"]["host"]["memory_bytes"] == 1e12
    assert found["assumptions"]["imbalance"] == 1.5
    assert found["assumptions"]["max_micro_batches"] == 4
    assert found["assumptions"]["fp8_arithmetic"] is True


def test_figures_come_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gpu.json"
    path.write_text('{"name": "measured", "memory_bytes_per_s": 4.1e12}')
    assert "measured, 141 GB at 4.1 TB/s" in printed(capsys, "--machine", str(path))


def test_a_checkpoint_is_planned_in_the_form_it_is_stored_in(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["plan", "--model", str(tiny_checkpoint), "--gpus", "1xA100", "--context", "64"]) == 0
    )
    assert f"{tiny_checkpoint}: experts bf16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("form", "experts"),
    [(Form.FP8_BLOCK, "fp8"), (Form.W4A16, "int4"), (Form.NVFP4_MODELOPT, "nvfp4")],
)
def test_a_quantised_checkpoint_is_planned_in_its_own_form(
    form: Form, experts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_checkpoint_outline(
        slice_of(PRESETS["tiny"], 4, 1, num_experts=8), tmp_path / "model", Recipe(form)
    )
    assert main(["plan", "--model", str(path), "--gpus", "1xA100", "--context", "64"]) == 0
    out = capsys.readouterr().out
    assert f"{path}: experts {experts} " in out
    assert "Loading widens them to bf16 so far" in out


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        (["--gpus", "8xH200"], "--model"),
        (["--model", "large"], "--gpus"),
        (["--model", "large", "--gpus", "H200"], "COUNTxNAME"),
        (["--model", "large", "--gpus", "8xTPU"], "not in the table"),
        (["--model", "large", "--gpus", "8xH200", "--context", "1M"], "at most 262144"),
        (["--model", "large", "--gpus", "8xH200", "--context", "long"], "--context"),
        (["--model", "large", "--gpus", "8xH100", "--cpu-hosts", "0"], "13 or more H100-80"),
        (["--model", "large", "--gpus", "8xH200", "--rate", "9", "--streams", "9"], "one of"),
        (["--model", "large", "--gpus", "8xH200", "--set", "colour=7"], "colour"),
        (["--model", "large", "--gpus", "8xH200", "--set", "imbalance=much"], "imbalance"),
        (["--model", "large", "--gpus", "8xH200", "--set", "memory_share=0"], "memory_share"),
        (["--model", "large", "--gpus", "8xH200", "--set", "max_micro_batches=0"], "1 or more"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_line(
    args: list[str], wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *args]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert wanted in captured.err


def test_a_layout_that_does_not_fit_is_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ray_config.yaml"
    arguments = ["--layout", "mixed", "--cpu-hosts", "0", "--out", str(path)]
    assert main([*LARGE, *arguments]) == 2
    assert "mixed does not fit" in capsys.readouterr().err
    assert not path.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="measures the CPUs, and here is a GPU")
def test_this_machines_own_figures_are_measured() -> None:
    found = measure_here(Probe(copy_bytes=2**24, matrix_rows=128, repeats=2))
    # A machine on which memory is slower or faster than this does not run these tests.
    assert 1e8 < found.memory_bytes_per_s < 1e13
    assert found.memory_bytes > 2**30
    assert found.bf16_flops > 1e7


def test_a_measurement_is_printed_as_a_file_for_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured() -> DeviceFigures:
        return DeviceFigures("here", 9e10, 2e12, 3e14, 3e14, 1e10, 1e10)

    monkeypatch.setattr(plan_module, "measure_here", measured)
    assert main(["plan", "--measure"]) == 0
    path = tmp_path / "here.json"
    path.write_text(capsys.readouterr().out)
    assert "here, 90 GB at 2 TB/s" in printed(capsys, "--experts", "nvfp4", "--machine", str(path))
