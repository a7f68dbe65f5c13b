"""Conformance and invariance of `linear` and `grouped_swiglu`, over every backend."""

from __future__ import annotations

import gc
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.errors import ConfigError, KernelInputError
from experts.kernels import load_expert_kernels
from experts.kernels.base import ExpertKernels
from experts.kernels.cpu.kernels import CpuExpertKernels
from experts.kernels.cpu.library import Isa
from tests.support.expert_checks import REFERENCE, check_expert_rows, check_linear, check_logits
from tests.support.kernels import (
    DTYPES,
    bits,
    filled_table,
    groups,
    process_state,
    random,
    random_experts,
)
from tests.support.triton import TRITON_RUNS

LIBRARY = CpuExpertKernels().library
CPU: ExpertKernels = CpuExpertKernels()
BACKENDS = [REFERENCE, CPU]
if TRITON_RUNS:  # on a GPU, or interpreted: see test_kernels_interpreted.py
    BACKENDS.append(load_expert_kernels("cuda"))
LINEAR_SIZES = [(32, 2), (33, 7), (1, 1), (100, 65), (256, 192)]
ROW_COUNTS = [0, 1, 2, 5, 12, 13, 31]
GROUPS = {
    "ragged": ([1, 0, 3, 26, 13], [2, 0, 1, 4, 3]),
    "one row": ([1], [4]),
    "all empty": ([0, 0], [0, 1]),
    "no group": ([], []),
    "one group": ([40], [1]),
}


@pytest.fixture(params=list(Isa), ids=lambda isa: isa.name)
def isa(request: pytest.FixtureRequest) -> Iterator[Isa]:
    with process_state(LIBRARY, request.param, threads=2):
        yield request.param


@pytest.fixture(params=BACKENDS, ids=lambda kernels: kernels.name)
def kernels(request: pytest.FixtureRequest) -> ExpertKernels:
    backend: ExpertKernels = request.param
    return backend


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("out", "inner"), LINEAR_SIZES)
def test_linear_is_the_references(isa: Isa, dtype: torch.dtype, out: int, inner: int) -> None:
    check_linear(CPU, dtype, (out, inner), ROW_COUNTS)


@pytest.mark.parametrize("weight_dtype", DTYPES)
def test_linear_gives_unrounded_logits_from_bfloat16_rows(
    isa: Isa, weight_dtype: torch.dtype
) -> None:
    check_logits(CPU, weight_dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize(("hidden", "width"), [(64, 48), (33, 7), (32, 16)])
def test_grouped_swiglu_is_the_references(
    isa: Isa, dtype: torch.dtype, name: str, hidden: int, width: int
) -> None:
    check_expert_rows(CPU, dtype, GROUPS[name], (hidden, width))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_linear_row_has_the_same_bits_alone_and_in_company(
    kernels: ExpertKernels, dtype: torch.dtype
) -> None:
    weight = kernels.pack_linear(random(70, 51, dtype=dtype))
    x = random(64, 51, dtype=dtype)
    with process_state(LIBRARY, LIBRARY.best_isa, threads=1):
        alone = torch.cat([kernels.linear(row[None], weight) for row in x])
    for threads in (1, 2):
        with process_state(LIBRARY, LIBRARY.best_isa, threads):
            for rows in (64, 13, 7):
                assert torch.equal(kernels.linear(x[:rows], weight), alone[:rows])
            turned = torch.arange(63, -1, -1)
            assert torch.equal(kernels.linear(x[turned], weight), alone[turned])


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_expert_row_has_the_same_bits_alone_and_in_company(
    kernels: ExpertKernels, dtype: torch.dtype
) -> None:
    table = filled_table(kernels, random_experts(5, 40, 24, dtype))
    x = random(10, 40, dtype=dtype)
    token_idx, expert_ids, offsets = groups(*GROUPS["ragged"], num_tokens=10)
    alone = torch.empty(len(token_idx), 40, dtype=dtype)
    for group, expert in enumerate(expert_ids):
        for n in range(offsets[group], offsets[group + 1]):
            one = np.array([token_idx[n]], np.int32), np.array([expert], np.int32)
            alone[n] = kernels.grouped_swiglu(x, *one, np.array([0, 1], np.int32), table)[0]
    for threads in (1, 2):
        with process_state(LIBRARY, LIBRARY.best_isa, threads):
            together = kernels.grouped_swiglu(x, token_idx, expert_ids, offsets, table)
        assert torch.equal(together, alone)


@pytest.mark.parametrize("out_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_instruction_set_gives_the_same_bits_for_any_bit_pattern(
    dtype: torch.dtype, out_dtype: torch.dtype
) -> None:
    """Random bits: denormals, infinities and NaN among them, and sums that over- and underflow."""
    generator = np.random.RandomState(11)
    width = 12
    raw = generator.randint(0, 2**32, (600, width), dtype=np.uint32)
    # Half the numbers small enough for products at the edge of the denormals.
    raw[::2] = raw[::2] & 0x9FFFFFFF | 0x10000000
    if dtype == torch.bfloat16:
        numbers = torch.from_numpy((raw >> 16).astype(np.uint16).view(np.int16)).view(dtype)
    else:
        numbers = torch.from_numpy(raw.view(np.int32)).view(dtype)
    x, weight = numbers[:300], CPU.pack_linear(numbers[300:])
    outputs = []
    for level in [isa for isa in Isa if isa <= LIBRARY.best_isa]:
        with process_state(LIBRARY, level, threads=1):
            outputs.append(CPU.linear(x, weight, out_dtype))
    assert torch.isnan(outputs[0]).any()
    assert torch.isfinite(outputs[0]).any()
    for other in outputs[1:]:
        assert torch.equal(bits(outputs[0]), bits(other))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_instruction_set_gives_the_same_expert_bits(dtype: torch.dtype) -> None:
    table = filled_table(CPU, random_experts(5, 65, 37, dtype))
    x = random(10, 65, dtype=dtype) * 8
    arguments = groups(*GROUPS["ragged"], num_tokens=10)
    outputs = []
    for level in [isa for isa in Isa if isa <= LIBRARY.best_isa]:
        with process_state(LIBRARY, level, threads=1):
            outputs.append(CPU.grouped_swiglu(x, *arguments, table))
    for other in outputs[1:]:
        assert torch.equal(outputs[0], other)


def test_the_bfloat16_pair_is_added_odd_element_first(isa: Isa) -> None:
    """2^24 + 1 rounds to 2^24 in fp32, so the order of a pair shows."""
    big, one = 2.0**24, 1.0
    weight = CPU.pack_linear(torch.ones(1, 4, dtype=torch.bfloat16))
    x = torch.tensor([[-big, one, big, 0.0], [one, -big, big, 0.0]], dtype=torch.bfloat16)
    # Row 0: 1, then 1 - big, then + 0 + big. Row 1: -big, then 1 - big, then + 0 + big.
    assert CPU.linear(x, weight, torch.float32)[:, 0].tolist() == [1.0, 1.0]
    x = torch.tensor([[one, big, 0.0, -big], [big, one, -big, 0.0]], dtype=torch.bfloat16)
    # Row 0: big, then big + 1 = big, then - big. Row 1: 1, then 1 + big = big, then - big.
    assert CPU.linear(x, weight, torch.float32)[:, 0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_visible_in_its_row_and_only_there(
    kernels: ExpertKernels, dtype: torch.dtype, bad: float
) -> None:
    x = random(20, 40, dtype=dtype)
    x[6, 17] = bad
    experts = random_experts(1, 40, 24, dtype)
    arguments = groups([20], [0], num_tokens=20)
    token_idx, expert_ids, offsets = arguments
    token_idx[:] = np.arange(20)
    linear = kernels.linear(x, kernels.pack_linear(experts[0][0]))
    expert = kernels.grouped_swiglu(
        x, token_idx, expert_ids, offsets, filled_table(kernels, experts)
    )
    for out in (linear, expert):
        assert not torch.isfinite(out[6]).any()
        assert torch.isfinite(out[torch.arange(20) != 6]).all()


def test_denormals_count_as_zero_on_every_path(isa: Isa) -> None:
    tiny = torch.full((1, 8), 1e-39, dtype=torch.bfloat16)
    huge = torch.full((1, 8), 1e30, dtype=torch.bfloat16)
    assert tiny.abs().sum() > 0
    assert CPU.linear(tiny, CPU.pack_linear(huge), torch.float32).item() == 0.0


def test_overflow_is_infinite(isa: Isa) -> None:
    x = torch.full((1, 8), 1e30, dtype=torch.bfloat16)
    assert CPU.linear(x, CPU.pack_linear(x), torch.float32).item() == float("inf")


def test_flushing_denormals_ends_with_the_call() -> None:
    CPU.linear(random(3, 8), CPU.pack_linear(random(4, 8)))
    assert (torch.tensor([1e-39]) * 0.5).item() > 0.0


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_table_counts_its_bytes_and_gives_them_back(dtype: torch.dtype) -> None:
    experts = random_experts(3, 64, 32, dtype)
    table = CPU.new_table(3, 64, 32, dtype)
    assert table.nbytes == 0
    for expert in (2, 0):
        table.put(expert, *experts[expert])
    assert table.nbytes == 2 * sum(weight.nbytes for weight in experts[0])
    assert [table.holds(expert) for expert in range(3)] == [True, False, True]
    table.drop(2)
    table.drop(1)
    assert table.nbytes == sum(weight.nbytes for weight in experts[0])
    assert not table.holds(2)


def test_a_table_keeps_nothing_of_what_it_was_given(kernels: ExpertKernels) -> None:
    (weights,) = random_experts(1, 32, 16, torch.float32)
    x = random(4, 32)
    arguments = groups([4], [0], num_tokens=4)
    table = filled_table(kernels, [weights])
    before = kernels.grouped_swiglu(x, *arguments, table)
    for weight in weights:
        weight.zero_()
    assert torch.equal(kernels.grouped_swiglu(x, *arguments, table), before)


def test_an_expert_put_again_is_replaced(kernels: ExpertKernels) -> None:
    old, new = random_experts(2, 32, 16, torch.float32)
    x = random(4, 32)
    arguments = groups([4], [0], num_tokens=4)
    table = filled_table(kernels, [old])
    table.put(0, *new)
    assert torch.equal(
        kernels.grouped_swiglu(x, *arguments, table),
        kernels.grouped_swiglu(x, *arguments, filled_table(kernels, [new])),
    )


def test_slots_are_used_again_without_touching_other_experts() -> None:
    experts = random_experts(6, 32, 16, torch.float32)
    table = filled_table(CPU, experts)
    for expert in (1, 4):
        table.drop(expert)
    table.put(4, *experts[1])
    table.put(1, *experts[4])
    x = random(6, 32)
    swapped = [experts[e] for e in (0, 4, 2, 3, 1, 5)]
    arguments = groups([1] * 6, list(range(6)), num_tokens=6)
    assert torch.equal(
        CPU.grouped_swiglu(x, *arguments, table),
        CPU.grouped_swiglu(x, *arguments, filled_table(CPU, swapped)),
    )


def test_weights_are_freed_with_their_last_user() -> None:
    weight = torch.zeros(2048, 2048)
    CPU.pack_linear(weight)
    gc.collect()
    before = resident_bytes()
    for _ in range(12):
        CPU.pack_linear(weight)
    gc.collect()
    assert resident_bytes() - before < 6 * weight.nbytes


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


@pytest.mark.parametrize(
    ("token_idx", "expert_ids", "offsets"),
    [
        ([0, 5], [0], [0, 2]),
        ([-1, 0], [0], [0, 2]),
        ([0, 1], [3], [0, 2]),
        ([0, 1], [-1], [0, 2]),
        ([0, 1], [1], [0, 2]),
        ([0, 1], [0], [0, 1]),
        ([0, 1], [0, 0], [0, 3, 2]),
        ([0, 1], [0], [0, 1, 2]),
    ],
    ids=[
        "token too large",
        "token negative",
        "expert too large",
        "expert negative",
        "expert not held",
        "rows left over",
        "offsets fall",
        "too many offsets",
    ],
)
def test_indices_that_point_outside_are_refused(
    token_idx: list[int], expert_ids: list[int], offsets: list[int]
) -> None:
    table = CPU.new_table(3, 32, 16, torch.float32)
    table.put(0, *random_experts(1, 32, 16, torch.float32)[0])
    tokens, experts, starts = (np.array(v, np.int32) for v in (token_idx, expert_ids, offsets))
    with pytest.raises(KernelInputError):
        CPU.grouped_swiglu(random(5, 32), tokens, experts, starts, table)


def test_rows_of_another_shape_type_or_layout_are_refused() -> None:
    weight = CPU.pack_linear(random(8, 16))
    for x in (random(2, 15), random(2, 16).double(), random(16, 2).T):
        with pytest.raises(KernelInputError):
            CPU.linear(x, weight)
    with pytest.raises(KernelInputError):
        CPU.linear(random(2, 16), CPU.pack_linear(random(8, 16, dtype=torch.bfloat16)))


def test_an_expert_of_another_shape_is_refused(kernels: ExpertKernels) -> None:
    gate, up, down = random_experts(1, 32, 16, torch.float32)[0]
    table = kernels.new_table(2, 32, 16, torch.float32)
    with pytest.raises(ConfigError):
        table.put(0, gate, up[:-1], down)
    with pytest.raises(ConfigError):
        table.put(2, gate, up, down)


def test_auto_takes_a_gpu_and_else_the_c_kernels_where_they_are_built() -> None:
    on_gpu = torch.cuda.is_available() and TRITON_RUNS
    assert load_expert_kernels("auto").name == ("cuda" if on_gpu else "cpu")
    assert load_expert_kernels("cpu").bit_class == CPU.bit_class
    assert load_expert_kernels("reference").name == "reference"
