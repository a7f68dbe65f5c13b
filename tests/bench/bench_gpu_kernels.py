"""Expert kernels on a GPU, beside its own copy rate and torch's matmul rate in the same run.

    python -m tests.bench.bench_gpu_kernels [--against torch deepspeed] [--repeats 20]

Grouped SwiGLU in Trinity-Large's shape over 32 local experts: with few rows each, GB/s of weights
(bf16, FP8 blocks, W4A16); with many, share of `torch.matmul`'s rate. `torch._grouped_mm` and
DeepSpeed's experts compute the same as oracle and for comparison. Without a GPU nothing is
measured: the bench checks itself in Triton's interpreter, says so, and ends well.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from experts.kernels.cuda.groups import DeviceGroups
from experts.kernels.cuda.kernels import CudaExpertKernels
from experts.kernels.cuda.table import CudaTable
from experts.quantised.matrix import QuantisedMatrix
from experts.quantised.scheme import Form, Scheme
from tests.bench.gpu_clock import best_seconds, copy_rate
from tests.bench.report import Figure, Label, Machine, report
from tests.support.kernels import assert_near, random, random_experts

DECODE_ROWS = (1, 2, 4, 8, 16)
PREFILL_ROWS = (512, 1024)
FORMS = (None, Scheme(Form.FP8_BLOCK), Scheme(Form.W4A16, 128))
CHECK_TIMEOUT_S = 300.0
MATMUL_SIZE = 8192


@dataclass(frozen=True)
class Shape:
    """Experts of one layer on one shard."""

    num_experts: int
    hidden: int
    width: int

    def flops(self, rows: int) -> int:
        """Of so many rows for every expert."""
        return 6 * rows * self.num_experts * self.hidden * self.width


LARGE = Shape(32, 3072, 3072)
SMALL = Shape(3, 128, 128)
"""What the interpreter can do in seconds."""


@dataclass(frozen=True)
class Call:
    """One grouped product over groups of the same size, everything on the device."""

    x_TD: Tensor
    groups: DeviceGroups

    @classmethod
    def of(cls, kernels: CudaExpertKernels, shape: Shape, rows: int) -> Call:
        """Rows of their own for every expert, in order."""
        total = rows * shape.num_experts
        x_TD = random(total, shape.hidden, dtype=torch.bfloat16).to(kernels.device)
        arrays = [
            torch.from_numpy(array).to(kernels.device)
            for array in (
                np.arange(total, dtype=np.int32),
                np.arange(shape.num_experts, dtype=np.int32),
                np.arange(0, total + 1, rows, dtype=np.int32),
            )
        ]
        return cls(x_TD, DeviceGroups(arrays[0], arrays[1], arrays[2], max_rows=rows))


def plain_weights(shape: Shape, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Gate and up (E, F, D) and down (E, D, F): each expert its own memory, the same numbers."""
    (one,) = random_experts(1, shape.hidden, shape.width, torch.bfloat16)
    gate, up, down = (w.to(device).expand(shape.num_experts, *w.shape).contiguous() for w in one)
    return gate, up, down


def table_of(kernels: CudaExpertKernels, shape: Shape, scheme: Scheme | None) -> CudaTable:
    """Fill a table in the form asked for."""
    if scheme is None:
        sizes = shape.num_experts, shape.hidden, shape.width
        table = kernels.new_table(*sizes, torch.bfloat16)
        weights = plain_weights(Shape(1, shape.hidden, shape.width), torch.device("cpu"))
        for expert in range(shape.num_experts):
            table.put(expert, *(w[0] for w in weights))
        return table
    sides = shape.hidden, shape.width
    table = kernels.new_quantised_table(shape.num_experts, sides, torch.bfloat16, scheme)
    gate, up = (packed(scheme, (shape.width, shape.hidden), seed) for seed in (0, 1))
    down = packed(scheme, (shape.hidden, shape.width), 2)
    for expert in range(shape.num_experts):
        table.put_quantised(expert, gate, up, down)
    return table


def packed(scheme: Scheme, shape: tuple[int, int], seed: int) -> QuantisedMatrix:
    """Random codes of FP8 blocks or W4A16, small scales."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = shape
    if scheme.form is Form.W4A16:
        words = torch.randint(-(2**31), 2**31, (rows, columns // 8), generator=generator)
        scale = torch.full((rows, columns // scheme.group_size), 0.01)
        return QuantisedMatrix(scheme, shape, words.to(torch.int32), scale)
    codes = torch.randn(shape, generator=generator).to(torch.float8_e4m3fn)
    return QuantisedMatrix(
        scheme, shape, codes, torch.full((-(-rows // 128), -(-columns // 128)), 0.02)
    )


def torch_experts(shape: Shape, call: Call) -> Callable[[], Tensor]:
    """The same over `torch._grouped_mm`."""
    gate, up, down = (w.transpose(1, 2) for w in plain_weights(shape, call.x_TD.device))
    ends = call.groups.row_offsets_G1[1:]

    def run() -> Tensor:
        x = call.x_TD
        act = F.silu(torch._grouped_mm(x, gate, offs=ends)) * torch._grouped_mm(x, up, offs=ends)
        return torch._grouped_mm(act, down, offs=ends)

    return run


def deepspeed_experts(shape: Shape, call: Call) -> Callable[[], Tensor]:
    """The same by DeepSpeed's experts, which choose their own way of computing it."""
    experts = import_module("deepspeed.moe.ep_experts").GroupedExperts(
        dim=shape.hidden, hidden_dim=shape.width, num_experts=shape.num_experts, use_grouped_mm=True
    )
    experts = experts.to(call.x_TD.device, torch.bfloat16)
    gate, up, down = plain_weights(shape, call.x_TD.device)
    counts = call.groups.row_offsets_G1.diff()
    with torch.no_grad():
        for name, weight in (("w1", gate), ("w3", up), ("w2", down)):
            experts.get_parameter(name).copy_(weight)

    def run() -> Tensor:
        with torch.no_grad():
            out: Tensor = experts(call.x_TD, counts)
        return out

    return run


AGAINST = {"torch": torch_experts, "deepspeed": deepspeed_experts}


def check(kernels: CudaExpertKernels, shape: Shape, names: list[str]) -> None:
    """Hold a small product to the others'."""
    call = Call.of(kernels, shape, 16)
    got = kernels.grouped_swiglu_on_device(call.x_TD, call.groups, table_of(kernels, shape, None))
    for name in names:
        assert_near(got, AGAINST[name](shape, call)(), times=2)


def decode_rate(
    kernels: CudaExpertKernels, table: CudaTable, rows: int, repeats: int, shape: Shape = LARGE
) -> float:
    """Return bytes of weights per second: each is read once."""
    call = Call.of(kernels, shape, rows)

    def run() -> None:
        kernels.grouped_swiglu_on_device(call.x_TD, call.groups, table)

    return table.nbytes / best_seconds(run, repeats)


def prefill_rate(
    kernels: CudaExpertKernels, table: CudaTable, rows: int, repeats: int, shape: Shape = LARGE
) -> float:
    """Return floating-point operations per second."""
    call = Call.of(kernels, shape, rows)

    def run() -> None:
        kernels.grouped_swiglu_on_device(call.x_TD, call.groups, table)

    return shape.flops(rows) / best_seconds(run, repeats)


def matmul_rate(repeats: int) -> float:
    """Return floating-point operations per second of torch's own bfloat16 matmul."""
    size = (MATMUL_SIZE, MATMUL_SIZE)
    a, b = (torch.randn(size, device="cuda").to(torch.bfloat16) for _ in range(2))
    return 2 * MATMUL_SIZE**3 / best_seconds(lambda: a @ b, repeats)


def figures(kernels: CudaExpertKernels, names: list[str], repeats: int) -> Iterator[Figure]:
    """Measure everything, limits first."""
    copied, multiplied = copy_rate(repeats), matmul_rate(repeats)
    yield Figure("gpu copy", copied / 1e9, "GB/s")
    yield Figure("torch matmul", multiplied / 1e12, "TFLOP/s")
    for scheme in FORMS:
        table = table_of(kernels, LARGE, scheme)
        form = "bf16" if scheme is None else str(scheme.form)
        for rows in DECODE_ROWS:
            rate = decode_rate(kernels, table, rows, repeats)
            labels: dict[str, Label] = {"form": form, "rows": rows}
            yield Figure("grouped SwiGLU of copy", rate / copied, "share", labels)
        for rows in PREFILL_ROWS:
            rate = prefill_rate(kernels, table, rows, repeats)
            labels = {"form": form, "rows": rows}
            yield Figure("grouped SwiGLU of matmul", rate / multiplied, "share", labels)
    for name in names:
        for rows in (*DECODE_ROWS, *PREFILL_ROWS):
            seconds = best_seconds(AGAINST[name](LARGE, Call.of(kernels, LARGE, rows)), repeats)
            labels = {"by": name, "rows": rows}
            yield Figure("grouped SwiGLU of others", seconds * 1e3, "ms", labels)


def check_interpreted(names: list[str]) -> int:
    """Check in a process of its own: Triton decides at its import whether it interprets."""
    command = [sys.executable, "-m", "tests.bench.bench_gpu_kernels", "--check-only"]
    command += ["--against", *names] if names else []
    interpreted = {**os.environ, "TRITON_INTERPRET": "1"}
    return subprocess.run(command, env=interpreted, check=False, timeout=CHECK_TIMEOUT_S).returncode


def main(arguments: list[str] | None = None) -> int:
    """Measure; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--against", nargs="*", choices=sorted(AGAINST), default=["torch"])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--check-only", action="store_true")
    options = parser.parse_args(arguments)
    if not options.check_only and not torch.cuda.is_available():
        status = check_interpreted(options.against)
        verdict = "are those of the others" if status == 0 else "are WRONG"
        print(f"no CUDA device: nothing was measured; interpreted, the numbers {verdict}")
        return status
    kernels = CudaExpertKernels()
    check(kernels, SMALL, options.against)
    if not options.check_only:
        machine, gpu = Machine.here(), torch.cuda.get_device_name()
        for figure in figures(kernels, options.against, options.repeats):
            report(machine, figure, gpu=gpu)
    return 0


if __name__ == "__main__":
    sys.exit(main())
