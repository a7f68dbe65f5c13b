"""What docs/operations.md names exists: commands and options, errors, metrics, keys, files."""

from __future__ import annotations

import re

import click
import pytest

from cluster import errors
from tests.architecture.source import ROOT
from tests.architecture.test_config_keys import KEYS
from tests.architecture.test_readme import find_command

PAGE = (ROOT / "docs/operations.md").read_text(encoding="utf8")
SNIPPETS = re.findall(r"`([^`\n]+)`", PAGE)
COMMANDS = sorted(
    {text for text in SNIPPETS if text.startswith("trinity ")}
    | set(re.findall(r"^(trinity .*?)(?: +#.*)?$", PAGE, re.M))
)
METRICS = sorted(set(re.findall(r"`((?:trinity|vllm)_[a-z_]+)`", PAGE)))
TABLE = PAGE[PAGE.index("## When things fail") : PAGE.index("## Overload")]
SYMPTOMS = " ".join(re.findall(r"^\| (.*?) \|", TABLE, re.M))
CODES = sorted(set(re.findall(r"`([a-z]+_[a-z_]+)`", SYMPTOMS)) - set(METRICS))


@pytest.mark.parametrize("line", COMMANDS)
def test_each_trinity_line_names_a_command_and_options_that_exist(line: str) -> None:
    words = line.split()[1:]
    if not words:
        return
    command: click.Command = find_command(words)
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("name", METRICS)
def test_each_metric_is_in_the_list(name: str) -> None:
    assert f"`{name}`" in (ROOT / "docs/metrics.md").read_text(encoding="utf8")


@pytest.mark.parametrize("code", CODES)
def test_each_error_of_the_table_of_failures_is_in_the_tree(code: str) -> None:
    codes = {getattr(each, "code", None) for each in vars(errors).values()}
    assert code in codes


@pytest.mark.parametrize("text", sorted(set(SNIPPETS)))
def test_each_key_and_file_that_is_named_is_there(text: str) -> None:
    if re.fullmatch(r"(?:args\.)?(?:attention|experts|ingress|security|network)\.[a-z_.]+", text):
        key = text.removeprefix("args.").removesuffix("...")
        assert any(name.startswith(key.rstrip("_")) for name in KEYS)
    if re.fullmatch(r"(?:cluster|docs|tests)/[\w./-]+", text):
        assert (ROOT / text).exists()


def test_the_page_has_what_these_tests_look_for() -> None:
    assert len(COMMANDS) > 10
    assert len(METRICS) > 8
    assert {"not_ready", "coverage_lost", "slow_reader", "poisoned_request"} <= set(CODES)
