"""Tiles, bounds and memory layout of the CUDA backend: what needs neither Triton nor a GPU."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import ConfigError
from experts.kernels import load_expert_kernels
from experts.kernels.cuda.forms import ExpertLayout, StoredForm
from experts.kernels.cuda.tiles import (
    BLOCK_K,
    TILES,
    most_tiles,
    num_tiles,
    padded_groups,
    tile_for,
)
from experts.quantised.scheme import Form, Scheme
from tests.support.triton import TRITON_RUNS


@pytest.mark.parametrize("dtype", TILES)
def test_the_step_of_k_is_one_for_every_number_of_rows(dtype: torch.dtype) -> None:
    assert isinstance(BLOCK_K[dtype], int)
    sizes = [tile_for(rows, dtype).block_n for rows in range(1, 4097)]
    assert sizes == sorted(sizes)
    assert set(sizes) == {tile.block_n for tile in TILES[dtype]}


@given(st.lists(st.integers(0, 300), max_size=40), st.sampled_from([16, 32, 64, 128]))
def test_groups_never_take_more_tiles_than_are_launched_blindly(
    rows_G: list[int], block_n: int
) -> None:
    assert num_tiles(rows_G, block_n) <= most_tiles(sum(rows_G), len(rows_G), block_n)


@given(st.integers(0, 2000))
def test_the_search_for_a_group_covers_all_in_few_sizes(num_groups: int) -> None:
    size = padded_groups(num_groups)
    assert size >= num_groups
    assert size in (32, 64, 128, 256, 512, 1024, 2048)


@pytest.mark.parametrize("form", [None, *Form])
@pytest.mark.parametrize(("hidden", "width"), [(3072, 3072), (256, 384)])
def test_the_parts_of_an_expert_are_aligned_and_do_not_overlap(
    form: Form | None, hidden: int, width: int
) -> None:
    groups = {Form.W4A16: 128, Form.NVFP4: 16, Form.NVFP4_MODELOPT: 16}
    scheme = None if form is None else Scheme(form, groups.get(form, 0))
    stored = StoredForm.of(scheme, torch.bfloat16)
    layout = ExpertLayout(hidden, width, stored, torch.bfloat16)
    gate, up, down = layout.starts
    assert gate + layout.gate_up.span <= up
    assert up + layout.gate_up.span <= down
    assert down + layout.down.span == layout.span
    assert layout.nbytes <= layout.span < layout.nbytes + 9 * 16
    for start, matrix in zip(
        layout.starts, (layout.gate_up, layout.gate_up, layout.down), strict=True
    ):
        assert start % 16 == matrix.scales_at % 16 == matrix.overall_at % 16 == 0
        assert matrix.scales_at <= matrix.overall_at <= matrix.span


@pytest.mark.skipif(TRITON_RUNS, reason="Triton runs here")
def test_asking_for_cuda_where_it_cannot_run_says_what_is_missing() -> None:
    missing = "CUDA device" if find_spec("triton") is not None else "Triton"
    with pytest.raises(ConfigError, match=missing):
        load_expert_kernels("cuda")
