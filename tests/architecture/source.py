"""What the architecture tests share: parsed source files and the repository's list of files."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("cluster", "experts", "router", "trinity_serve")


@cache
def source_files() -> tuple[Path, ...]:
    """Every Python file of the four packages."""
    return tuple(sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py")))


@cache
def parse(path: Path) -> ast.Module:
    """The syntax tree of one file."""
    return ast.parse(path.read_text(encoding="utf8"), str(path))


def nodes() -> Iterator[tuple[Path, ast.AST]]:
    """Every syntax node of the source, with its file relative to the root."""
    for path in source_files():
        for node in ast.walk(parse(path)):
            yield path.relative_to(ROOT), node


@cache
def tracked_files() -> tuple[Path, ...]:
    """The files that are in the repository, or would be with the next commit."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listing = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=30)
    paths = (ROOT / name for name in listing.stdout.decode().split("\0") if name)
    return tuple(path for path in paths if path.is_file())
