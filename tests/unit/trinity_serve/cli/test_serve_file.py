"""`trinity serve FILE`: which combinations are refused, and what a wrong file is answered with."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from trinity_serve.cli.main import EXIT_REFUSED, main
from trinity_serve.cli.serve import ReadyCallback

REPOSITORY = Path(__file__).parents[4]
SHIPPED = str(REPOSITORY / "ray_config.yaml")


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        (["serve", SHIPPED, "--model", "m"], "without --model"),
        (["serve", SHIPPED, "--shards", "2", "--kv-memory", "1GiB"], "--shards, --kv-memory"),
        (["serve", "--config", SHIPPED, "--mode", "inline"], "without --mode"),
        (["serve", SHIPPED, "--config", SHIPPED], "Two files"),
        (["serve", "--address", "auto", "--model", "m"], "--address is for a Serve file"),
        (["serve", "--shards", "4"], "--model PATH, or a ray_config.yaml"),
        (["serve", "no-such.yaml"], "no-such.yaml"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(
    args: list[str], wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(args) == EXIT_REFUSED
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert wanted in captured.err


def test_a_wrong_file_is_refused_before_ray_starts_with_every_problem_by_its_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = yaml.safe_load(Path(SHIPPED).read_text())
    raw["applications"][0]["args"]["attention"]["max_seqs"] = 3
    raw["applications"][0]["deployment"] = []
    file = tmp_path / "ray_config.yaml"
    file.write_text(yaml.safe_dump(raw))
    assert main(["serve", str(file)]) == 1
    said = capsys.readouterr().err
    assert "applications[0].args.attention.max_seqs" in said
    assert "applications[0].deployment" in said


@pytest.mark.parametrize("how", [[SHIPPED], ["--config", SHIPPED]])
@pytest.mark.parametrize("address", [None, "10.0.0.1:6379"])
def test_file_and_address_reach_the_runner_and_its_endpoint_is_printed(
    how: list[str],
    address: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: list[tuple[Path, str | None]] = []

    def serve_file(path: Path, *, address: str | None, on_ready: ReadyCallback) -> None:
        seen.append((path, address))
        on_ready("http://127.0.0.1:8000")

    runner = SimpleNamespace(serve_file=serve_file)
    modules = {"trinity_serve.file_on_ray": runner}
    load = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", lambda name: modules.get(name) or load(name))
    at = [] if address is None else ["--address", address]
    assert main(["serve", *how, *at]) == 0
    assert seen == [(Path(SHIPPED), address)]
    assert "http://127.0.0.1:8000/v1 serves trinity-demo" in capsys.readouterr().out
