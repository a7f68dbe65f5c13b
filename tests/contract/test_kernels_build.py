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
    for name in ("pyproject.toml", "setup.py"):
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


def test_auto_falls_back_to_the_reference_and_warns_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(expert_kernels, "CpuExpertKernels", lambda: CpuExpertKernels(tmp_path))
    monkeypatch.setattr(model_kernels, "CpuModelKernels", lambda: CpuModelKernels(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert expert_kernels.load_expert_kernels("auto").name == "reference"
        assert model_kernels.load_model_kernels("auto").name == "reference"
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_kernel_suites_pass_under_address_and_undefined_behaviour_sanitizers(
    tmp_path: Path,
) -> None:
    runtimes = [sanitizer_runtime("libasan.so"), sanitizer_runtime("libubsan.so")]
    copy_sources(tmp_path)
    for library in build.LIBRARIES:
        build.build(
            library, tmp_path / library.folder, tmp_path / "work", flags=build.SANITIZER_FLAGS
        )
    where = run([sys.executable, "-c", "import experts; print(experts.__file__)"], tmp_path, {}, 60)
    assert where.stdout.startswith(str(tmp_path)), "the installed kernels would be tested instead"
    # -s: what a sanitizer says before it aborts would be lost in pytest's capture.
    command = [sys.executable, "-m", "pytest", "-qs", "-p", "no:cacheprovider"]
    command += ["tests/contract/test_kernels_experts.py", "tests/contract/test_kernels_model.py"]
    environment = {
        "LD_PRELOAD": ":".join(runtimes),
        # Python itself never frees what it allocates once; freed weights are not held back.
        "ASAN_OPTIONS": "detect_leaks=0:quarantine_size_mb=1",
    }
    done = run(command, tmp_path, environment, timeout_s=500)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def sanitizer_runtime(name: str) -> str:
    """Path of a sanitizer's runtime; skips where there is no compiler that has it."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc: nothing to build with sanitizers")
    done = run(["gcc", f"-print-file-name={name}"], ROOT, {}, timeout_s=20)
    if not Path(done.stdout.strip()).is_absolute():
        pytest.skip(f"gcc has no {name}")
    return done.stdout.strip()
