"""What `python -m tests.gpu.check` compiles and judges: a list of kernels for each package.

A package's list is a module of its own (`LISTS`) with `kernel_list() -> KernelList`. It is called
in a process in which Triton compiles; the suites run in another one, on the GPU or interpreted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module

LISTS = ("tests.gpu.expert_kernels", "tests.gpu.model_kernels")


@dataclass(frozen=True)
class AotKernel:
    """One variant of one kernel, compiled as it is launched."""

    name: str
    """Op, dtypes and tile, as printed: ``gate_up bf16 n16``."""
    fn: object
    """The `triton.jit` function."""
    signature: Mapping[str, str]
    """Triton's type of every argument that is no constexpr: ``*bf16``, ``i32``."""
    constexprs: Mapping[str, object]
    """The value of every constexpr argument; a dtype of `triton.language` too."""
    judged_by: tuple[str, ...]
    """Its numbers are right when every test of the suites with one of these words in its name
    passed, and there was one."""
    divisible_by_16: tuple[str, ...] = ()
    """Arguments beyond the pointers, which always are, that a launch would find divisible."""
    num_warps: int = 4
    num_stages: int = 3
    fp_fusion: bool = True
    """As launched: whether a product and a sum may become one fused multiply-add."""
    max_spill_bytes: int = 0
    instruction: str = ""
    """A regular expression that each matrix instruction in the PTX matches as a whole, like
    ``wgmma.*k16``, and there must be one; empty: there must be none."""


@dataclass(frozen=True)
class KernelList:
    """What one package brings."""

    title: str
    suites: tuple[str, ...]
    """Arguments for pytest: the files that judge the numbers, on a GPU or interpreted."""
    kernels: tuple[AotKernel, ...] = field(default=())


def kernel_lists() -> list[KernelList]:
    """Return every package's list."""
    lists: list[KernelList] = [import_module(name).kernel_list() for name in LISTS]
    return lists
