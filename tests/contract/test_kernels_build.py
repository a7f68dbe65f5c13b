"""The build of the C kernels: without a compiler, and with sanitizers."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.errors import ConfigError
from experts import kernels as expert_kernels
from experts.kernels.cpu import build
from experts.kernels.cpu.kernels import CpuExpertKernels
from trinity_serve.model import kernels as model_kernels
from trinity_serve.model.kernels.cpu.kernels import CpuModelKernels

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("cluster", "experts", "router", "trinity_serve")


def run(
    command: list[str], cwd: Path, environment: dict[str, str], timeout_s: float
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
    )


def copy_sources(to: Path) -> None:
    """The packages and the kernel suites, without anything compiled."""
    skip = shutil.ignore_patterns("*.so", "__pycache__")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, to / name, ignore=skip)
    for name in ("tests/contract", "tests/support"):
        shutil.copytree(ROOT / name, to / name, ignore=skip)
    for name in ("pyproject.toml", "setup.py", "tests/conftest.py"):
        shutil.copy2(ROOT / name, to / name)


def test_the_package_builds_without_a_compiler_and_says_so(tmp_path: Path) -> None:
    copy_sources(tmp_path)
    empty = tmp_path / "no-programs"
    empty.mkdir()
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = run(command, tmp_path, {"PATH": str(empty)}, timeout_s=60)
    assert done.returncode == 0, done.stderr
    assert "the reference will serve" in done.stderr + done.stdout
    assert not list(tmp_path.rglob("*.so"))


def test_a_source_that_does_not_compile_is_a_build_error_with_the_compilers_words(
    tmp_path: Path,
) -> None:
    with pytest.raises(build.BuildError, match="no-such-compiler"):
        build.build(build.EXPERTS, tmp_path, tmp_path / "work", compiler="no-such-compiler")


def test_kernels_asked_for_by_name_that_are_not_built_are_a_configuration_error(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match="reference"):
        CpuExpertKernels(tmp_path)
    with pytest.raises(ConfigError, match="reference"):
        CpuModelKernels(tmp_path)


class Records(logging.Handler):
    """Keeps what a logger of the test's own is told, whatever other tests did to logging."""

    def __init__(self) -> None:
        super().__init__()
        self.levels: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.levels.append(record.levelname)


def test_auto_falls_back_to_the_reference_and_warns_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, own = Records(), logging.Logger("of-this-test", logging.WARNING)
    own.addHandler(records)
    for module in (expert_kernels, model_kernels):
        monkeypatch.setattr(module, "logger", own)
    monkeypatch.setattr(expert_kernels, "CpuExpertKernels", lambda: CpuExpertKernels(tmp_path))
    monkeypatch.setattr(model_kernels, "CpuModelKernels", lambda: CpuModelKernels(tmp_path))
    assert expert_kernels.load_expert_kernels("auto").name == "reference"
    assert model_kernels.load_model_kernels("auto").name == "reference"
    assert records.levels == ["WARNING"]


SUITES = (
    "tests/contract/test_kernels_experts.py",
    "tests/contract/test_kernels_model.py",
    "tests/contract/test_segments.py",
    "tests/contract/test_vocabulary_draw.py",
    "tests/contract/test_plan.py",
)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_kernel_suites_pass_under_address_and_undefined_behaviour_sanitizers(
    tmp_path: Path,
) -> None:
    run_sanitized(tmp_path, build.SANITIZER_FLAGS, list(SUITES))


def test_whole_forward_passes_of_the_portable_kernels_pass_under_sanitizers(
    tmp_path: Path,
) -> None:
    """The short form: every op once, without the instruction sets that take long to compile."""
    chosen = "every_number_of_rows or not_finite_is_told or planner_in_c or forbidden_id"
    flags = (*build.SANITIZER_FLAGS, build.PORTABLE_ONLY)
    run_sanitized(tmp_path, flags, [*SUITES[2:], "-k", chosen])


def run_sanitized(folder: Path, flags: tuple[str, ...], arguments: list[str]) -> None:
    """Build copies of the sources with `flags` in `folder` and run pytest there."""
    runtimes = [sanitizer_runtime("libasan.so"), sanitizer_runtime("libubsan.so")]
    copy_sources(folder)
    for library in build.LIBRARIES:
        build.build(library, folder / library.folder, folder / "work", flags=flags)
    where = run([sys.executable, "-c", "import experts; print(experts.__file__)"], folder, {}, 60)
    assert where.stdout.startswith(str(folder)), "the installed kernels would be tested instead"
    # -s: what a sanitizer says before it aborts would be lost in pytest's capture.
    command = [sys.executable, "-m", "pytest", "-qs", "-p", "no:cacheprovider", *arguments]
    environment = {
        "LD_PRELOAD": ":".join(runtimes),
        # Python itself never frees what it allocates once; freed weights are not held back.
        "ASAN_OPTIONS": "detect_leaks=0:quarantine_size_mb=1",
    }
    done = run(command, folder, environment, timeout_s=500)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def sanitizer_runtime(name: str) -> str:
    """Path of a sanitizer's runtime; skips where there is no compiler that has it."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc: nothing to build with sanitizers")
    done = run(["gcc", f"-print-file-name={name}"], ROOT, {}, timeout_s=20)
    if not Path(done.stdout.strip()).is_absolute():
        pytest.skip(f"gcc has no {name}")
    return done.stdout.strip()
