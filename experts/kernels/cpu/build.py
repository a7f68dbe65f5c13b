"""Compile the C kernels: each op file once per instruction set, the rest once.

`setup.py` calls this at install; tests call it for a build with sanitizers. It imports nothing of
the package, because it runs before the package is installed.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
COMMON_FLAGS = (
    "-std=c11",
    # A product and a sum are contracted to fma where the source says so and nowhere else.
    "-ffp-contract=off",
    "-fno-math-errno",
    # Packed words are float or pairs of bfloat16, as the op has it.
    "-fno-strict-aliasing",
    "-fPIC",
    "-fvisibility=hidden",
    "-pthread",
    "-Wall",
    "-Wextra",
    "-Werror=implicit-function-declaration",
)
RELEASE_FLAGS = ("-O3",)
SANITIZER_FLAGS = (
    "-O1",
    "-g",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
)
PORTABLE_ONLY = "-DTS_PORTABLE_ONLY"
VERSIONS_X86: dict[str, tuple[str, ...]] = {
    "portable": (),
    "avx2": ("-DTS_BUILD_AVX2", "-mavx2", "-mfma"),
    "avx512": (
        "-DTS_BUILD_AVX512",
        "-mavx512f",
        "-mavx512bw",
        "-mavx512dq",
        "-mavx512vl",
        "-mavx512bf16",
        "-mfma",
    ),
}


@dataclass(frozen=True)
class Library:
    """One shared object: where its sources are, and which of them are compiled per version."""

    name: str
    folder: Path
    """Of the package, relative to the repository; sources are in its `src`."""
    ops: tuple[str, ...]
    once: tuple[str, ...]


EXPERTS = Library(
    "_experts.so",
    Path("experts/kernels/cpu"),
    ops=("limits", "linear", "swiglu"),
    once=("api", "isa", "limits_api", "memory", "pack", "pool", "table"),
)
MODEL = Library(
    "_model.so",
    Path("trinity_serve/model/kernels/cpu"),
    ops=("attention", "combine", "draw", "embed", "gate", "norm", "vocab", "write_kv"),
    once=("api", "bind", "kv", "plan", "segment"),
)
LIBRARIES = (EXPERTS, MODEL)


class BuildError(Exception):
    """The compiler is missing or refused a file; the message has what it said."""


def versions(flags: tuple[str, ...] = ()) -> dict[str, tuple[str, ...]]:
    """Return the instruction sets to build for on this machine, with their flags."""
    if PORTABLE_ONLY not in flags and platform.machine().lower() in ("x86_64", "amd64"):
        return VERSIONS_X86
    return {"portable": ()}


def build(
    library: Library,
    target_dir: Path,
    work_dir: Path,
    compiler: str = "gcc",
    flags: tuple[str, ...] = RELEASE_FLAGS,
) -> Path:
    """Compile `library` into `target_dir` and return the shared object. Raises BuildError.

    With PORTABLE_ONLY among the flags, the instruction sets of this machine are left out.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    target_dir.mkdir(parents=True, exist_ok=True)
    source_dir = ROOT / library.folder / "src"
    include = (f"-I{source_dir}", f"-I{ROOT / EXPERTS.folder / 'src'}")
    base = (compiler, *COMMON_FLAGS, *flags, *include)
    commands: list[tuple[str, ...]] = []
    objects: list[str] = []
    jobs: list[tuple[str, str, tuple[str, ...]]] = [(name, "", ()) for name in library.once]
    jobs += [(op, f"_{v}", extra) for op in library.ops for v, extra in versions(flags).items()]
    for name, suffix, extra in jobs:
        out = str(work_dir / f"{library.name}.{name}{suffix}.o")
        commands.append((*base, *extra, "-c", str(source_dir / f"{name}.c"), "-o", out))
        objects.append(out)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(_run, commands))
    target = target_dir / library.name
    linked = work_dir / library.name
    _run((compiler, *flags, "-shared", "-pthread", *objects, "-lm", "-o", str(linked)))
    # Replaced as a whole: a process that has the old file mapped keeps it.
    shutil.copy2(linked, target.with_suffix(".new"))
    os.replace(target.with_suffix(".new"), target)
    return target


def _run(command: tuple[str, ...]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command)}\n{done.stderr}")


def build_in_place(compiler: str = "gcc") -> list[Path]:
    """Compile every library beside its sources, for an editable install."""
    return [
        build(library, ROOT / library.folder, ROOT / "build" / "kernels", compiler)
        for library in LIBRARIES
    ]


if __name__ == "__main__":
    build_in_place()
