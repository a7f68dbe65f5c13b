"""The `trinity` command's entry: its list of commands and its one-line refusals."""

from __future__ import annotations

import importlib
from pathlib import Path

import click
import pytest

from trinity_serve.cli import check
from trinity_serve.cli import main as entry
from trinity_serve.cli.main import COMMANDS, main


@pytest.mark.parametrize("name", COMMANDS)
def test_each_listed_command_has_a_module_with_a_command_of_that_name(name: str) -> None:
    command = importlib.import_module(COMMANDS[name].module).command
    assert isinstance(command, click.Command)
    assert command.name == name
    assert command.help


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert f"Usage: trinity {name}" in capsys.readouterr().out


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert name in out
        assert command.help in out


def test_no_command_at_all_prints_the_help_and_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([]) == entry.EXIT_REFUSED
    assert "Commands:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        (["bogus"], "bogus"),
        (["serve"], "--model"),
        (["serve", "--model", "m", "--shards", "0"], "experts.num_shards"),
        (["serve", "--model", "m", "--dtype", "int4"], "int4"),
        (["serve", "--model", "m", "--transport", "grpc"], "experts.transport grpc needs shards"),
        (["check", "no-such-file.yaml"], "no-such-file.yaml"),
    ],
)
def test_a_refusal_is_one_line_on_stderr_with_exit_code_2(
    args: list[str], wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(args) == entry.EXIT_REFUSED
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("trinity: ")
    assert captured.err.count("\n") == 1
    assert wanted in captured.err


def test_an_interrupt_before_the_server_stands_ends_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(_path: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(check, "find_problems", interrupted)
    assert main(["check", __file__]) == entry.EXIT_INTERRUPTED


def test_a_package_that_is_not_installed_is_told_with_the_way_to_find_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(COMMANDS, "check", entry.CommandEntry("no_such_package", ""))
    assert main(["check", "--help"]) == entry.EXIT_REFUSED
    err = capsys.readouterr().err
    assert "no_such_package" in err
    assert "trinity doctor" in err


def test_a_files_problems_are_all_named_and_the_exit_code_is_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ray_config.yaml"
    path.write_text("applications:\n- name: a\n  args: {modle: {}}\n  colour: red\n")
    assert main(["check", str(path)]) == 1
    out = capsys.readouterr().out
    assert "modle" in out
    assert "colour" in out
