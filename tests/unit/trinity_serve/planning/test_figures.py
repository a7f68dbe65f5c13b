"""Figures of machines: the table, changes by hand, files of a measurement."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.errors import ConfigError
from trinity_serve.planning.figures import MACHINES, figure_names, find_machine, read_figures


def test_gpus_are_found_by_their_short_names() -> None:
    assert find_machine("h200", "here").name == "H200-141"
    assert find_machine("MI300X", "here").name == "MI300X"
    with pytest.raises(ConfigError, match="H100-80, H200-141"):
        find_machine("H20", "here")


def test_every_figure_of_every_machine_can_be_replaced() -> None:
    for machine in MACHINES.values():
        for name in figure_names():
            assert getattr(machine.replaced({name: 7.0}, "here"), name) == 7.0


@pytest.mark.parametrize(
    ("key", "value"), [("memory", 1.0), ("memory_bytes", 0.0), ("bf16_flops", float("inf"))]
)
def test_a_figure_that_is_unknown_or_no_size_is_refused_by_name(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=key):
        MACHINES["B200"].replaced({key: value}, "here")


def test_a_file_replaces_what_it_has_and_keeps_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    path.write_text(json.dumps({"name": "mine", "memory_bytes_per_s": 4e12}))
    mine = read_figures(path, MACHINES["H200-141"])
    assert (mine.name, mine.memory_bytes_per_s) == ("mine", 4e12)
    assert mine.memory_bytes == MACHINES["H200-141"].memory_bytes


@pytest.mark.parametrize("content", ['{"memory_bytes": "141GB"}', '{"memory_bytes": true}', "7"])
def test_a_file_with_something_else_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "machine.json"
    path.write_text(content)
    with pytest.raises(ConfigError):
        read_figures(path, MACHINES["H200-141"])


def test_planning_needs_neither_torch_nor_ray() -> None:
    code = "import sys, trinity_serve.planning; print({'torch', 'ray'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "set()"
