"""The tool behind `make gpu-check` says what is wrong, and one kernel of each kind compiles."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from tests.gpu.compiling import Compiled, compile_kernel
from tests.gpu.expert_kernels import kernel_list
from tests.gpu.kernels import AotKernel
from tests.gpu.numbers import judge, outcomes_of
from tests.support.triton import INTERPRETED

KERNEL = AotKernel("k", None, {}, {}, ("linear", "norm"), instruction=r"wgmma.*k16")
GOOD = Compiled(KERNEL, 40, 0, 1024, ("wgmma.mma_async.sync.aligned.m64n16k16",))
REPORT = """<testsuites><testsuite>
<testcase name="test_linear_is_right[a]"/>
<testcase classname="tests.linear" name="test_linear_is_right[b]"><failure/></testcase>
<testcase name="test_a_norm_is_right"/>
<testcase name="test_linear_on_a_gpu"><skipped/></testcase>
<testcase classname="tests.linear" name="test_an_expert_is_right[linear]"/>
</testsuite></testsuites>"""


def test_a_kernel_is_judged_by_the_tests_with_its_words_that_ran() -> None:
    numbers = judge(KERNEL, outcomes_of(REPORT))
    assert not numbers.right
    assert numbers.num_passed == 2
    assert numbers.failed == ("tests.linear::test_linear_is_right[b]",)
    assert str(numbers) == "WRONG (1 of 3)"


def test_a_kernel_without_a_test_is_not_right() -> None:
    numbers = judge(AotKernel("k", None, {}, {}, ("attention",)), outcomes_of(REPORT))
    assert not numbers.right
    assert str(numbers) == "UNTESTED"


def test_a_kernel_as_its_list_wants_it_has_no_problem() -> None:
    assert GOOD.problems == []


@pytest.mark.parametrize(
    ("compiled", "problem"),
    [
        (Compiled(KERNEL, 255, 8, 1024, GOOD.instructions), "spills 8 bytes, 0 allowed"),
        (Compiled(KERNEL, 40, 0, 300_000, GOOD.instructions), "300000 bytes of shared memory"),
        (Compiled(KERNEL, 40, 0, 1024, ()), "does not use"),
        (
            Compiled(KERNEL, 40, 0, 1024, (*GOOD.instructions, "mma.sync.aligned.m16n8k16")),
            "uses mma.sync.aligned.m16n8k16",
        ),
    ],
)
def test_spills_memory_and_instructions_are_held_to_the_list(
    compiled: Compiled, problem: str
) -> None:
    (found,) = compiled.problems
    assert problem in found


@pytest.mark.skipif(INTERPRETED, reason="Triton compiles nothing when it interprets")
@pytest.mark.parametrize(
    "name", ["gate_up bf16 plain n16", "down bf16 e4m3_block n16", "linear bf16 x fp32 -> fp32 n16"]
)
def test_a_kernel_compiles_for_sm_90_as_its_list_wants_it(name: str) -> None:
    (kernel,) = [each for each in kernel_list().kernels if each.name == name]
    compiled = compile_kernel(kernel)
    assert compiled.problems == []
    assert 16 <= compiled.registers <= 255
