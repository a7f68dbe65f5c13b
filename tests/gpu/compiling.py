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

_USED = re.compile(r"Used (\d+) registers")
_SPILLED = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_MATRIX = re.compile(r"\b(?:wgmma\.mma_async|mma)\.sync\.aligned\.m\d+n\d+k\d+")


@dataclass(frozen=True)
class Compiled:
    """What the compilers made of one kernel."""

    kernel: AotKernel
    registers: int
    spill_bytes: int
    """Stored to and loaded from local memory, the larger of the two."""
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
    registers, spilled = _assembled(ptx, kernel.fp_fusion)
    used = tuple(sorted(set(_MATRIX.findall(ptx))))
    return Compiled(kernel, registers, spilled, compiled.metadata.shared, used)


def _attributes(kernel: AotKernel) -> dict[tuple[int, ...], list[list[object]]]:
    names: list[str] = kernel.fn.arg_names  # type: ignore[attr-defined]
    divisible = [n for n, kind in kernel.signature.items() if kind.startswith("*")]
    divisible += kernel.divisible_by_16
    return {(names.index(name),): [["tt.divisibility", 16]] for name in divisible}


def _assembled(ptx: str, fp_fusion: bool) -> tuple[int, int]:
    """Return registers and spilled bytes, as the assembler that Triton brings tells them."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx, encoding="utf8")
        target = "sm_90a"
        command = [triton.knobs.nvidia.ptxas.path, "-v", f"--gpu-name={target}", str(source)]
        command += ["-o", str(Path(folder) / "kernel.cubin")]
        command += [] if fp_fusion else ["--fmad=false"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    spilled = _SPILLED.search(done.stderr)
    used = _USED.search(done.stderr)
    if spilled is None or used is None:
        raise RuntimeError(f"ptxas told nothing of registers: {done.stderr}")
    return int(used[1]), max(int(spilled[1]), int(spilled[2]))
