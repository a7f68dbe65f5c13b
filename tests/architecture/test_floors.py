"""The floors, as pyproject.toml states them, hold: imports go down only, Ray stays in shells."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.source import PACKAGES, ROOT, nodes, parse, source_files

HEAVY = {"torch", "ray", "pydantic", "numpy", "grpc", "fastapi"}
LIGHT_MODULES = (
    "cli/main.py",
    "cli/findings.py",
    "cli/doctor.py",
    "cli/__init__.py",
    "__init__.py",
)


def imported_packages(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


def test_every_import_contract_is_kept() -> None:
    # In a process of its own: it turns off every logger that exists, and later tests read logs.
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_package_of_the_house_has_its_floor() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages - {"tests"} == set(PACKAGES)


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_the_commands_entry_and_the_doctor_need_no_heavy_package(module: str) -> None:
    heavy = imported_packages(parse(ROOT / "trinity_serve" / module)) & HEAVY
    assert not heavy


def test_imports_stand_at_the_top_of_their_module() -> None:
    lazy = [
        f"{path}:{inner.lineno}"
        for path, node in nodes()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        for inner in ast.walk(node)
        if isinstance(inner, (ast.Import, ast.ImportFrom))
    ]
    assert not lazy


def test_there_is_source_to_look_at() -> None:
    assert len(source_files()) > len(PACKAGES)
