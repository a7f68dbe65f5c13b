"""Compiles a kernel for sm_90 without a GPU, and reads from the result what it takes and uses."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tests.gpu.kernels import AotKernel

TARGET = GPUTarget("cuda", 90, 32)
MAX_SHARED_BYTES = 227 * 1024
"""What a block may have on sm_90."""

_USAGE = re.compile(r"REG:(\d+) STACK:(\d+)")
_MATRIX = re.compile(r"\b(?:wgmma\.mma_async|mma)\.sync\.aligned\.m\d+n\d+k\d+")


@dataclass(frozen=True)
class Compiled:
    """What the compilers made of one kernel."""

    kernel: AotKernel
    registers: int
    spill_bytes: int
    """Of stack that a thread has: these kernels put nothing there but what has no register."""
    shared_bytes: int
    instructions: tuple[str, ...]
    """Matrix instructions, like ``wgmma.mma_async.sync.aligned.m64n16k16``."""

    @property
    def problems(self) -> list[str]:
        """What is not as the list wants it."""
        kernel, found = self.kernel, []
        if self.spill_bytes > kernel.max_spill_bytes:
            found.append(f"spills {self.spill_bytes} bytes, {kernel.max_spill_bytes} allowed")
        if self.shared_bytes > MAX_SHARED_BYTES:
            found.append(f"needs {self.shared_bytes} bytes of shared memory")
        wrong = [i for i in self.instructions if not re.fullmatch(kernel.instruction, i)]
        if wrong:
            found.append(f"uses {', '.join(wrong)}, not {kernel.instruction or 'none'}")
        if kernel.instruction and not self.instructions:
            found.append(f"does not use {kernel.instruction}")
        return found


def compile_kernel(kernel: AotKernel) -> Compiled:
    """Compile for `TARGET`; takes about a second and raises what Triton raises."""
    compiled = triton.compile(
        ASTSource(
            fn=kernel.fn,
            signature=dict(kernel.signature) | dict.fromkeys(kernel.constexprs, "constexpr"),
            constexprs=dict(kernel.constexprs),
            attrs=_attributes(kernel),
        ),
        target=TARGET,
        options={
            "num_warps": kernel.num_warps,
            "num_stages": kernel.num_stages,
            "enable_fp_fusion": kernel.fp_fusion,
        },
    )
    ptx: str = compiled.asm["ptx"]
    registers, spilled = _usage(compiled.asm["cubin"])
    used = tuple(sorted(set(_MATRIX.findall(ptx))))
    return Compiled(kernel, registers, spilled, compiled.metadata.shared, used)


def _attributes(kernel: AotKernel) -> dict[tuple[int, ...], list[list[object]]]:
    names: list[str] = kernel.fn.arg_names  # type: ignore[attr-defined]
    divisible = [n for n, kind in kernel.signature.items() if kind.startswith("*")]
    divisible += kernel.divisible_by_16
    return {(names.index(name),): [["tt.divisibility", 16]] for name in divisible}


def _usage(cubin: bytes) -> tuple[int, int]:
    """Return registers and bytes of stack per thread, as they stand in the machine code."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    found = _USAGE.search(done.stdout + done.stderr)
    if found is None:
        raise RuntimeError(f"cuobjdump told nothing of registers: {done.stdout}{done.stderr}")
    return int(found[1]), int(found[2])
