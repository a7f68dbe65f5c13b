"""Runs the suites that judge the kernels' numbers, and says what they say of one kernel."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from tests.gpu.kernels import AotKernel

ROOT = Path(__file__).parents[2]

Outcomes = Mapping[str, bool]
"""Of each test that ran, by its file, name and parameters: whether it passed."""


@dataclass(frozen=True)
class Numbers:
    """What the tests that judge a kernel said."""

    num_passed: int
    failed: tuple[str, ...]

    @property
    def right(self) -> bool:
        """Whether some test passed and none failed."""
        return self.num_passed > 0 and not self.failed

    def __str__(self) -> str:
        if self.failed:
            return f"WRONG ({len(self.failed)} of {self.num_passed + len(self.failed)})"
        return f"right ({self.num_passed})" if self.num_passed else "UNTESTED"


def judge(kernel: AotKernel, outcomes: Outcomes) -> Numbers:
    """Look at every test with one of the kernel's words in its name."""
    judges = {
        name: passed
        for name, passed in outcomes.items()
        if any(word in _function(name) for word in kernel.judged_by)
    }
    failed = tuple(sorted(name for name, passed in judges.items() if not passed))
    return Numbers(len(judges) - len(failed), failed)


def run_suites(suites: Sequence[str], interpreted: bool, timeout_s: float) -> Outcomes:
    """Run the suites in a process of their own and return what came out.

    Raises RuntimeError when they did not run to their end.
    """
    env = {**os.environ, **({"TRITON_INTERPRET": "1"} if interpreted else {})}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        # Those of this backend: its own files, and its turns in the files of all backends.
        options = ["-q", "-k", "cuda", "-p", "no:cacheprovider", f"--junitxml={report}"]
        command = [sys.executable, "-m", "pytest", *options, *suites]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )
        if done.returncode not in (0, 1) or not report.exists():
            raise RuntimeError(
                f"the suites did not run: {done.stdout[-2000:]}{done.stderr[-2000:]}"
            )
        return outcomes_of(report.read_text(encoding="utf8"))


def outcomes_of(junit: str) -> Outcomes:
    """Read pytest's report; skipped tests say nothing."""
    outcomes = {}
    for case in ElementTree.fromstring(junit).iter("testcase"):
        kinds = {child.tag for child in case}
        if "skipped" not in kinds:
            name = f"{case.get('classname', '')}::{case.get('name', '')}"
            outcomes[name] = not kinds & {"failure", "error"}
    return outcomes


def _function(name: str) -> str:
    return name.partition("::")[2].partition("[")[0]
