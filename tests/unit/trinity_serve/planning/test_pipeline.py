"""Conditions of the pipeline between attention and expert devices."""

from __future__ import annotations

import pytest

from trinity_serve.planning import MACHINES, Assumptions, LayoutKind, ModelSizes, WeightForm
from trinity_serve.planning.layouts import Layout
from trinity_serve.planning.pipeline import (
    layer_budget_s,
    min_micro_batches,
    separation_speedup,
    tokens_for_arithmetic,
)
from trinity_serve.planning.step import StepModel
from trinity_serve.synthetic import PRESETS


@pytest.mark.parametrize(("transfer", "wanted"), [(0.0, 2), (0.3, 3), (0.5, 3), (0.6, 4), (1, 4)])
def test_three_micro_batches_hide_short_transfers_and_four_longer_ones(
    transfer: float, wanted: int
) -> None:
    assert min_micro_batches(transfer, 1.0) == wanted


def test_separate_devices_gain_only_what_their_batches_grow_by() -> None:
    # Eight devices lent to attention, four to experts: half as much more batch just pays for them.
    assert separation_speedup(1.5, 1.0, 8, 4) == 1.0
    assert separation_speedup(1.5, 1.5, 8, 4) < 0.7


def test_fifty_milliseconds_leave_833_microseconds_for_each_of_60_layers() -> None:
    assert layer_budget_s(0.05, 60) == pytest.approx(833e-6, abs=1e-6)
    assert layer_budget_s(0.05, 60) / 3 == pytest.approx(278e-6, abs=1e-6)


def test_decode_on_an_h200_is_bound_by_memory_until_13000_tokens() -> None:
    gpu = MACHINES["H200-141"]
    rows = tokens_for_arithmetic(gpu.bf16_flops, gpu.memory_bytes_per_s, 2, 1)
    assert rows == pytest.approx(206, abs=0.5)
    assert 64 * rows == pytest.approx(13_000, rel=0.02)


def pipeline_step_s(
    attention_s: float, experts_s: float, transfer_s: float, micro_batches: int, num_layers: int
) -> float:
    """One step from an empty pipeline: (Ta + Te + 2 Tc) + Tf (m L - 1), all per layer."""
    fill_s = attention_s + experts_s + 2 * transfer_s
    return fill_s + max(attention_s, experts_s) * (micro_batches * num_layers - 1)


@pytest.mark.parametrize("streams", [200, 600, 1000])
def test_a_pipeline_that_stays_full_takes_what_one_from_empty_takes_without_its_filling(
    streams: int,
) -> None:
    sizes = ModelSizes(PRESETS["large"], WeightForm.FP8, WeightForm.FP8)
    gpu, layers = MACHINES["H200-141"], 54
    model = StepModel(sizes, Layout(LayoutKind.SEPARATE, 11, 5, gpu, gpu, 1), Assumptions())
    step = model.step(streams, 8192, 4)
    slower_s = max(step.attention_s, step.experts.seconds)
    assert min_micro_batches(step.exchange.seconds / 2, slower_s) <= 4
    attention_s, experts_s = step.attention_s / layers, step.experts.seconds / layers
    transfer_s = step.exchange.seconds / 2 / layers
    from_empty_s = pipeline_step_s(attention_s, experts_s, transfer_s, 4, layers)
    filling_s = attention_s + experts_s + 2 * transfer_s - slower_s / layers
    assert step.seconds == pytest.approx(from_empty_s - filling_s)
