"""The Triton kernels of the expert side, held to the reference and to themselves.

Runs where Triton runs: on a GPU, or through its interpreter (`test_kernels_interpreted.py` starts
that). What every backend must do is in `test_kernels_experts.py`, which has this one too then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from cluster.errors import ConfigError, KernelInputError
from experts.kernels import load_expert_kernels
from experts.kernels.base import Int32
from experts.kernels.cuda.groups import DeviceGroups
from experts.quantised.dequantise import dequantise
from experts.quantised.matrix import QuantisedMatrix
from experts.quantised.scheme import BLOCK, Form, Scheme
from tests.support.expert_checks import check_expert_rows, check_linear, check_logits
from tests.support.kernels import (
    DTYPES,
    Experts,
    filled_table,
    groups,
    random,
    random_experts,
)
from tests.support.triton import needs_triton

if TYPE_CHECKING:
    from experts.kernels.cuda.kernels import CudaExpertKernels
    from experts.kernels.cuda.table import CudaTable

pytestmark = needs_triton

GROUPS = {
    "ragged": ([1, 0, 3, 26, 13], [2, 0, 1, 4, 3]),
    "one row": ([1], [4]),
    "all empty": ([0, 0], [0, 1]),
    "no group": ([], []),
    "past the largest tile": ([150], [1]),
}
SCHEMES = [
    Scheme(Form.FP8),
    Scheme(Form.FP8_DYNAMIC),
    Scheme(Form.FP8_BLOCK),
    Scheme(Form.W4A16, 128),
    Scheme(Form.NVFP4, 16),
    Scheme(Form.NVFP4_MODELOPT, 16),
]
PACKED_EXPERTS = 2
HIDDEN, WIDTH = 256, 128


@pytest.fixture(scope="module")
def cuda() -> CudaExpertKernels:
    return cast("CudaExpertKernels", load_expert_kernels("cuda"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("out", "inner"), [(33, 7), (1, 1), (100, 65), (256, 192)])
def test_linear_is_the_references(
    cuda: CudaExpertKernels, dtype: torch.dtype, out: int, inner: int
) -> None:
    check_linear(cuda, dtype, (out, inner), (0, 1, 13, 31, 70))


@pytest.mark.parametrize("weight_dtype", DTYPES)
def test_linear_gives_unrounded_logits_from_bfloat16_rows(
    cuda: CudaExpertKernels, weight_dtype: torch.dtype
) -> None:
    check_logits(cuda, weight_dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize(("hidden", "width"), [(64, 48), (33, 7), (130, 96)])
def test_expert_rows_are_the_references(
    cuda: CudaExpertKernels, dtype: torch.dtype, name: str, hidden: int, width: int
) -> None:
    check_expert_rows(cuda, dtype, GROUPS[name], (hidden, width))


@pytest.mark.parametrize("weight_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_linear_row_has_the_same_bits_in_every_tile(
    cuda: CudaExpertKernels, dtype: torch.dtype, weight_dtype: torch.dtype
) -> None:
    if (dtype, weight_dtype) == (torch.float32, torch.bfloat16):
        pytest.skip("no such product: float32 rows have float32 weights")
    weight = cuda.pack_linear(random(70, 210, dtype=weight_dtype))
    x = random(200, 210, dtype=dtype)
    alone = torch.cat([cuda.linear(row[None], weight) for row in x[:10]])
    # As many rows as the smallest tile takes, one more, and so on past the largest.
    for rows in (16, 17, 33, 65, 129, 200):
        assert torch.equal(cuda.linear(x[:rows], weight)[:10], alone)
        moved = cuda.linear(x[:rows].flip(0).contiguous(), weight)
        assert torch.equal(moved.flip(0)[:10], alone)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_expert_row_has_the_same_bits_in_every_tile(
    cuda: CudaExpertKernels, dtype: torch.dtype
) -> None:
    table = filled(cuda, random_experts(3, 130, 70, dtype))
    x = random(10, 130, dtype=dtype)
    one = groups([1], [1], num_tokens=1)
    alone = torch.cat([cuda.grouped_swiglu(row[None], *one, table) for row in x])
    for rows in (7, 17, 33, 65, 140):
        token_idx, expert_ids, offsets = groups([5, rows, 0], [0, 1, 2], num_tokens=10)
        together = cuda.grouped_swiglu(x, token_idx, expert_ids, offsets, table)
        assert torch.equal(together[5:], alone[torch.from_numpy(token_idx[5:]).long()])


@pytest.mark.parametrize("max_rows", [1, 20, 100])
def test_expert_groups_may_be_known_to_the_device_alone(
    cuda: CudaExpertKernels, max_rows: int
) -> None:
    """Programs are launched for the most tiles there may be; those without one do nothing."""
    table = filled(cuda, random_experts(5, 64, 48, torch.bfloat16))
    x = random(10, 64, dtype=torch.bfloat16)
    arguments = groups(*GROUPS["ragged"], num_tokens=10)
    want = cuda.grouped_swiglu(x, *arguments, table)
    got = cuda.grouped_swiglu_on_device(
        x.to(cuda.device), device_groups(cuda, arguments, max_rows), table
    )
    assert torch.equal(got.cpu(), want)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_a_captured_expert_call_is_replayed_over_other_groups(cuda: CudaExpertKernels) -> None:
    table = filled(cuda, random_experts(5, 64, 48, torch.bfloat16))
    x = random(10, 64, dtype=torch.bfloat16).to(cuda.device)
    first = groups([1, 0, 3, 26, 13], [2, 0, 1, 4, 3], num_tokens=10)
    second = groups([9, 9, 9, 9, 7], [0, 1, 2, 3, 4], num_tokens=10)
    arrays = device_groups(cuda, first, max_rows=26)
    cuda.grouped_swiglu_on_device(x, arrays, table)  # compiled before it is captured
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = cuda.grouped_swiglu_on_device(x, arrays, table)
    names = ("token_idx_N", "expert_ids_G", "row_offsets_G1")
    for chosen in (second, first):
        for name, values in zip(names, chosen, strict=True):
            getattr(arrays, name).copy_(torch.from_numpy(values))
        graph.replay()
        assert torch.equal(captured, cuda.grouped_swiglu(x, *chosen, table))


@pytest.mark.parametrize(
    ("scheme", "dtype"),
    [*((scheme, torch.bfloat16) for scheme in SCHEMES), (SCHEMES[3], torch.float32)],
    ids=str,
)
def test_packed_experts_give_the_bits_of_their_dequantised_weights(
    cuda: CudaExpertKernels, dtype: torch.dtype, scheme: Scheme
) -> None:
    packed = [packed_expert(scheme, expert) for expert in range(PACKED_EXPERTS)]
    table = cuda.new_quantised_table(PACKED_EXPERTS, (HIDDEN, WIDTH), dtype, scheme)
    for expert, matrices in enumerate(packed):
        table.put_quantised(expert, *matrices)
    plain = filled(
        cuda, [cast("Experts", tuple(values(m, dtype) for m in each)) for each in packed]
    )
    x = random(6, HIDDEN, dtype=dtype)
    for sizes in ([3, 4], [1, 40]):
        arguments = groups(sizes, [1, 0], num_tokens=6)
        got = cuda.grouped_swiglu(x, *arguments, table)
        assert torch.isfinite(got).all()
        assert torch.equal(got, cuda.grouped_swiglu(x, *arguments, plain))


@pytest.mark.parametrize(
    ("scheme", "bits"),
    [(SCHEMES[1], 8.02), (SCHEMES[2], 8.01), (SCHEMES[3], 4.3), (SCHEMES[4], 4.6)],
)
def test_packed_experts_stay_packed(cuda: CudaExpertKernels, scheme: Scheme, bits: float) -> None:
    table = cuda.new_quantised_table(4, (3072, 3072), torch.bfloat16, scheme)
    assert table.layout.nbytes * 8 / (3 * 3072 * 3072) < bits


def test_packed_experts_of_another_form_shape_or_number_are_refused(
    cuda: CudaExpertKernels,
) -> None:
    table = cuda.new_quantised_table(2, (HIDDEN, WIDTH), torch.bfloat16, SCHEMES[0])
    gate, up, down = packed_expert(SCHEMES[0], 0)
    with pytest.raises(ConfigError, match="fp8-block"):
        table.put_quantised(0, *packed_expert(SCHEMES[2], 0))
    with pytest.raises(ConfigError, match=r"\(128, 256\)"):
        table.put_quantised(0, gate, down, up)
    with pytest.raises(ConfigError, match="0 to 1"):
        table.put_quantised(2, gate, up, down)
    with pytest.raises(ConfigError, match="plain"):
        table.put(0, *random_experts(1, HIDDEN, WIDTH, torch.bfloat16)[0])
    with pytest.raises(ConfigError, match="multiples of 64"):
        cuda.new_quantised_table(2, (HIDDEN, WIDTH), torch.bfloat16, Scheme(Form.W4A16, 32))


def test_expert_memory_is_taken_by_put_and_given_back_by_drop(cuda: CudaExpertKernels) -> None:
    experts = random_experts(3, 64, 32, torch.bfloat16)
    table = cuda.new_table(3, 64, 32, torch.bfloat16)
    assert table.nbytes == 0
    for expert in (2, 0):
        table.put(expert, *experts[expert])
    assert table.nbytes == 2 * sum(weight.nbytes for weight in experts[0])
    assert (table.addresses_E != 0).tolist() == [True, False, True]
    table.drop(2)
    table.drop(1)
    assert table.nbytes == sum(weight.nbytes for weight in experts[0])
    assert (table.addresses_E != 0).tolist() == [True, False, False]


def test_experts_come_and_go_without_touching_others(cuda: CudaExpertKernels) -> None:
    experts = random_experts(6, 32, 16, torch.float32)
    table = filled(cuda, experts)
    for expert in (1, 4):
        table.drop(expert)
    table.put(4, *experts[1])
    table.put(1, *experts[4])
    x = random(6, 32)
    swapped = [experts[e] for e in (0, 4, 2, 3, 1, 5)]
    arguments = groups([1] * 6, list(range(6)), num_tokens=6)
    assert torch.equal(
        cuda.grouped_swiglu(x, *arguments, table),
        cuda.grouped_swiglu(x, *arguments, filled(cuda, swapped)),
    )


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
)
def test_expert_indices_that_point_outside_are_refused(
    cuda: CudaExpertKernels, token_idx: list[int], expert_ids: list[int], offsets: list[int]
) -> None:
    table = cuda.new_table(3, 32, 16, torch.float32)
    table.put(0, *random_experts(1, 32, 16, torch.float32)[0])
    tokens, experts, starts = (np.array(v, np.int32) for v in (token_idx, expert_ids, offsets))
    with pytest.raises(KernelInputError):
        cuda.grouped_swiglu(random(5, 32), tokens, experts, starts, table)


def test_linear_rows_of_another_shape_type_or_layout_are_refused(cuda: CudaExpertKernels) -> None:
    weight = cuda.pack_linear(random(8, 16))
    for x in (random(2, 15), random(2, 16).double(), random(16, 2).T):
        with pytest.raises(KernelInputError):
            cuda.linear(x, weight)
    with pytest.raises(KernelInputError):
        cuda.linear(random(2, 16), cuda.pack_linear(random(8, 16, dtype=torch.bfloat16)))


def test_the_bit_class_names_the_version_triton_and_the_machine(cuda: CudaExpertKernels) -> None:
    backend, version, triton_version, machine = cuda.bit_class.split("/")
    assert backend == "cuda-triton"
    assert version.isdigit()
    assert triton_version[0].isdigit()
    assert machine.startswith("sm_") or machine == "interpreted"


def filled(cuda: CudaExpertKernels, experts: list[Experts]) -> CudaTable:
    """`filled_table`, of this backend."""
    return cast("CudaTable", filled_table(cuda, experts))


def device_groups(
    cuda: CudaExpertKernels, arguments: tuple[Int32, Int32, Int32], max_rows: int
) -> DeviceGroups:
    arrays = [torch.from_numpy(array).to(cuda.device) for array in arguments]
    return DeviceGroups(arrays[0], arrays[1], arrays[2], max_rows)


def packed_expert(scheme: Scheme, seed: int) -> tuple[QuantisedMatrix, ...]:
    """Gate, up and down of random codes: all of a form's that are numbers."""
    shapes = ((WIDTH, HIDDEN), (WIDTH, HIDDEN), (HIDDEN, WIDTH))
    return tuple(packed(scheme, shape, 3 * seed + i) for i, shape in enumerate(shapes))


def packed(scheme: Scheme, shape: tuple[int, int], seed: int) -> QuantisedMatrix:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = shape

    def positive(*size: int) -> Tensor:
        # No powers of two: every product is rounded.
        return torch.rand(size, generator=generator) * 0.01 + 0.001

    def codes(bits: int, *size: int) -> Tensor:
        return torch.randint(0, 2**bits, size, generator=generator)

    if scheme.form is Form.W4A16:
        words = codes(32, rows, columns // 8).to(torch.int32)
        scale = positive(rows, columns // scheme.group_size).to(torch.bfloat16)
        return QuantisedMatrix(scheme, shape, words, scale)
    if scheme.form in (Form.NVFP4, Form.NVFP4_MODELOPT):
        pairs = codes(8, rows, columns // 2).to(torch.uint8)
        scale = (positive(rows, columns // 16) * 1000).to(torch.float8_e4m3fn)
        overall = torch.tensor([1234.5 if scheme.form is Form.NVFP4 else 1 / 1234.5])
        return QuantisedMatrix(scheme, shape, pairs, scale, overall)
    bytes_ = codes(8, rows, columns).to(torch.uint8)
    bytes_[(bytes_ & 0x7F) == 0x7F] = 0x80  # the two codes of NaN
    scale_shapes = {
        Form.FP8: (1,),
        Form.FP8_DYNAMIC: (rows, 1),
        Form.FP8_BLOCK: (-(-rows // BLOCK), -(-columns // BLOCK)),
    }
    scale = positive(*scale_shapes[scheme.form]) * 0.1
    return QuantisedMatrix(scheme, shape, bytes_.view(torch.float8_e4m3fn), scale)


def values(matrix: QuantisedMatrix, dtype: torch.dtype) -> Tensor:
    return dequantise(matrix, torch.empty(matrix.shape, dtype=dtype))
