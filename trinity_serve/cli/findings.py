"""What `trinity doctor` looks at. Each check returns one finding and never raises.

Only the standard library and our errors are imported: the doctor must run where the rest is
missing.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cluster.errors import TrinityError

MIN_FREE_MEMORY_GIB = 4.0
MIN_OPEN_FILES = 4096


class Level(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    NOTE = "note"
    """Something works less well, or a test is skipped."""
    MISSING = "missing"
    """Serving does not work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor: what was looked at, how it is, and what to do about it."""

    name: str
    level: Level
    detail: str
    remedy: str = ""


def examine(port: int) -> Iterator[Finding]:
    """Yield every finding, the cheap ones first. Importing torch and Ray takes some seconds."""
    yield python_version(sys.version_info[:2])
    yield pinned_packages(importlib.metadata.requires("trinity-serve") or [])
    yield compiler()
    yield free_memory(Path("/proc/meminfo"))
    yield huge_pages(Path("/sys/kernel/mm/transparent_hugepage/enabled"))
    yield open_files()
    yield free_port("127.0.0.1", port)
    yield network_namespaces()
    yield importable("torch")
    yield importable("ray")
    yield cpu_kernels()


def python_version(version: tuple[int, int]) -> Finding:
    """Judge a Python version."""
    text = f"{version[0]}.{version[1]}"
    if (3, 11) <= version < (3, 13):
        return Finding("python", Level.OK, text)
    return Finding("python", Level.MISSING, text, "use Python 3.11: make PYTHON=python3.11 setup")


def pinned_packages(requirements: list[str]) -> Finding:
    """Compare what is installed with the pins of the package's runtime dependencies."""
    pins = [re.match(r"([\w.-]+)(?:\[\w+\])?==([\w.]+)$", line) for line in requirements]
    wrong = []
    for pin in filter(None, pins):
        found = _installed_version(pin[1])
        if found != pin[2]:
            wrong.append(f"{pin[1]} {found or 'absent'} (wanted {pin[2]})")
    if wrong:
        return Finding("packages", Level.MISSING, ", ".join(wrong), "run: make setup")
    return Finding("packages", Level.OK, f"{len(list(filter(None, pins)))} at their pins")


def compiler() -> Finding:
    """Look for the C compiler that builds the CPU kernels."""
    path = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if path:
        return Finding("compiler", Level.OK, path)
    remedy = "install gcc (Debian: apt-get install gcc libc6-dev), then: make setup"
    return Finding("compiler", Level.NOTE, "no C compiler", remedy)


def free_memory(meminfo: Path) -> Finding:
    """Judge the memory that is free for weights, KV and processes."""
    match = _search(meminfo, r"MemAvailable:\s+(\d+) kB")
    if match is None:
        return Finding("memory", Level.NOTE, f"{meminfo} does not tell")
    gib = int(match[1]) / 2**20
    if gib >= MIN_FREE_MEMORY_GIB:
        return Finding("memory", Level.OK, f"{gib:.1f} GiB free")
    remedy = f"free some: the demo on Ray wants about {MIN_FREE_MEMORY_GIB:g} GiB"
    return Finding("memory", Level.NOTE, f"{gib:.1f} GiB free", remedy)


def huge_pages(setting: Path) -> Finding:
    """Tell whether large weights may lie in huge pages."""
    match = _search(setting, r"\[(\w+)\]")
    value = match[1] if match else "not available"
    if value in ("always", "madvise"):
        return Finding("huge pages", Level.OK, value)
    remedy = f"as root: echo madvise > {setting}"
    return Finding("huge pages", Level.NOTE, value, remedy)


def open_files() -> Finding:
    """Judge the limit of open files: each stream and each shard holds some."""
    soft = os.sysconf("SC_OPEN_MAX")
    if soft >= MIN_OPEN_FILES:
        return Finding("open files", Level.OK, f"{soft}")
    return Finding("open files", Level.NOTE, f"{soft}", f"in the shell: ulimit -n {MIN_OPEN_FILES}")


def free_port(host: str, port: int) -> Finding:
    """Try whether a server could listen at `port`."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            remedy = "take another: make serve PORT=8001, or PORT=0 for any"
            return Finding(f"port {port}", Level.NOTE, error.strerror or str(error), remedy)
    return Finding(f"port {port}", Level.OK, "free")


def network_namespaces() -> Finding:
    """Tell whether the tests with several hosts can run."""
    if os.geteuid() == 0 and shutil.which("ip"):
        return Finding("test hosts", Level.OK, "root, and ip is there")
    remedy = "tests over several hosts are skipped; they need root and iproute2"
    return Finding("test hosts", Level.NOTE, "not root" if os.geteuid() else "no ip", remedy)


def importable(module: str) -> Finding:
    """Import a module whole: a wheel may be installed and still not load here."""
    try:
        loaded = importlib.import_module(module)
    except (ImportError, OSError) as error:
        return Finding(module, Level.MISSING, str(error), "run: make setup")
    return Finding(module, Level.OK, str(getattr(loaded, "__version__", "no version")))


def cpu_kernels() -> Finding:
    """Tell which instruction set the C kernels would take, or why there are none."""
    try:
        library = importlib.import_module("experts.kernels.cpu.library").ExpertLibrary()
    except (ImportError, TrinityError) as error:
        remedy = "run: make setup (it builds them); without, the slow reference kernels serve"
        return Finding("C kernels", Level.NOTE, str(error), remedy)
    return Finding("C kernels", Level.OK, f"there; here they use {library.best_isa.name}")


def _installed_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def _search(path: Path, pattern: str) -> re.Match[str] | None:
    try:
        return re.search(pattern, path.read_text(encoding="utf8"))
    except OSError:
        return None
