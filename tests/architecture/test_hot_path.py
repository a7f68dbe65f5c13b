"""The way of a token stays short enough to be read. The figures are printed with `pytest -s`."""

from __future__ import annotations

from pathlib import Path

from tests.architecture.hot_path import num_lines, show, trace_a_step
from tests.architecture.source import ROOT


def test_the_stack_from_the_step_to_the_expert_kernel_is_short(tiny_checkpoint: Path) -> None:
    files = trace_a_step(tiny_checkpoint).above_kernel
    show("On the stack from the step to the expert kernel", files)
    assert {ROOT / "router" / "dispatcher.py", ROOT / "experts" / "shard.py"} <= files
    assert len(files) <= 12
    assert num_lines(files) <= 2500
