"""What the README and CONTRIBUTING tell a newcomer to type or to read is there."""

from __future__ import annotations

import re

import click
import pytest

from tests.architecture.source import ROOT
from trinity_serve.cli.main import trinity

README = (ROOT / "README.md").read_text(encoding="utf8")
PAGES = README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf8")
SNIPPETS = re.findall(r"`([^`\n]+)`", PAGES) + re.findall(r"^((?:make|trinity) .*)$", PAGES, re.M)
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf8"), re.M))
MAKE = sorted({text for text in SNIPPETS if text.startswith("make ")})
TRINITY = sorted({text for text in SNIPPETS if text.startswith("trinity ")})
PATHS = sorted(
    {
        text
        for text in SNIPPETS
        if re.fullmatch(r"[\w./]+/[\w./]+|[\w./]+\.(?:py|md|yaml|toml|lock)", text)
        and not text.startswith("/")
    }
)


def find_command(words: list[str]) -> click.Command:
    command: click.Command = trinity
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), words.pop(0))
        assert found is not None
        command = found
    return command


@pytest.mark.parametrize("line", MAKE)
def test_each_make_line_names_targets_that_exist(line: str) -> None:
    words = line.partition("#")[0].split()[1:]
    targets = [word for word in words if "=" not in word]
    assert targets
    assert set(targets) <= TARGETS


@pytest.mark.parametrize("line", TRINITY)
def test_each_trinity_line_names_a_command_and_options_that_exist(line: str) -> None:
    words = line.split()[1:]
    command = find_command(words)
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("path", PATHS)
def test_each_file_or_folder_that_is_named_is_there(path: str) -> None:
    assert (ROOT / path).exists()


def test_the_pages_name_commands_and_files_at_all() -> None:
    assert "make serve" in README
    assert len(MAKE) > 3
    assert len(TRINITY) > 3
    assert len(PATHS) > 10


def test_every_target_explains_itself_and_is_not_a_file() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf8")
    helped = set(re.findall(r"^([a-z-]+):.*## ", text, re.M))
    phony = set(re.search(r"^\.PHONY: (.*)$", text, re.M)[1].split())  # type: ignore[index]
    assert helped == TARGETS == phony
