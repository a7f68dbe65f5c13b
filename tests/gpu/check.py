"""Every Triton kernel: are its numbers right, and what does it take?

    python -m tests.gpu.check [--package experts] [--only PATTERN] [--jobs 2]

With a GPU, the suites run on it; without one, through Triton's interpreter. Every variant that
Trinity-Large and -Nano launch is compiled for sm_90 (which needs no GPU): registers, spilled bytes,
shared memory and matrix instructions are printed. Exits with 1 when a number is wrong, a kernel
spills more than its list allows, or uses another matrix instruction than it names.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module

import torch

from tests.gpu.compiling import Compiled, compile_kernel
from tests.gpu.kernels import LISTS, KernelList, kernel_lists
from tests.gpu.numbers import Numbers, judge, run_suites

SUITE_TIMEOUT_S = 1800.0


def main() -> int:
    """Check and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--package", help="one list alone: experts or model")
    parser.add_argument("--only", default="", help="kernels whose names match")
    parser.add_argument("--jobs", type=int, default=2, help="processes that compile")
    options = parser.parse_args()
    lists = kernel_lists()
    on_gpu = torch.cuda.is_available()
    where = f"on {torch.cuda.get_device_name()}" if on_gpu else "interpreted, there is no GPU here"
    print(f"numbers: {where}; code: compiled for sm_90", flush=True)
    chosen = {
        (i, j): kernel
        for i, each in enumerate(lists)
        for j, kernel in enumerate(each.kernels)
        if options.package in (None, each.title) and re.search(options.only, kernel.name)
    }
    used = {i for i, _ in chosen}
    outcomes = [
        suite_outcomes(each, not on_gpu) if i in used else {} for i, each in enumerate(lists)
    ]
    print(header(), flush=True)
    num_bad = 0
    for (i, j), compiled in zip(chosen, compile_all(chosen, options.jobs), strict=True):
        numbers = judge(chosen[i, j], outcomes[i])
        bad = not numbers.right or bool(compiled.problems)
        num_bad += bad
        print(line(lists[i].title, compiled, numbers), flush=True)
    unjudged = [name for each in outcomes for name, passed in each.items() if not passed]
    for name in unjudged:
        print(f"FAILED {name}")
    print(f"{len(chosen)} kernels, {num_bad} not as they should be, {len(unjudged)} failed tests")
    if not on_gpu:
        print("Nothing here says anything of speed, or of bits on a GPU.")
    return 1 if num_bad or unjudged or not chosen else 0


def suite_outcomes(each: KernelList, interpreted: bool) -> dict[str, bool]:
    """Run one package's suites."""
    outcomes = dict(run_suites(each.suites, interpreted, SUITE_TIMEOUT_S))
    print(f"{each.title}: {sum(outcomes.values())} of {len(outcomes)} tests passed", flush=True)
    return outcomes


def compile_all(places: Iterable[tuple[int, int]], jobs: int) -> Iterator[Compiled]:
    """Compile the kernels at these places of the lists, in order, in processes of their own."""
    # Spawned: Triton's compiler has threads that a fork would leave behind.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        lists = kernel_lists()
        for (i, j), used in zip(places, pool.map(_compile_at, places), strict=True):
            yield Compiled(lists[i].kernels[j], *used)


def _compile_at(place: tuple[int, int]) -> tuple[int, int, int, tuple[str, ...]]:
    """Kernels cannot be sent between processes; what they were compiled to can."""
    kernel = import_module(LISTS[place[0]]).kernel_list().kernels[place[1]]
    compiled = compile_kernel(kernel)
    return (
        compiled.registers,
        compiled.spill_bytes,
        compiled.shared_bytes,
        compiled.instructions,
    )


def header() -> str:
    """The table's first line."""
    return f"{'kernel':48} {'numbers':>14} {'regs':>5} {'spill':>6} {'shared':>7}  instruction"


def line(title: str, compiled: Compiled, numbers: Numbers) -> str:
    """One kernel's line, with what is wrong at its end."""
    shapes = " ".join(name.rpartition(".")[2] for name in compiled.instructions) or "-"
    problems = "".join(f"  <- {problem}" for problem in compiled.problems)
    return (
        f"{title + ' ' + compiled.kernel.name:48} {numbers!s:>14} {compiled.registers:5}"
        f" {compiled.spill_bytes:6} {compiled.shared_bytes:7}  {shapes}{problems}"
    )


if __name__ == "__main__":
    sys.exit(main())
