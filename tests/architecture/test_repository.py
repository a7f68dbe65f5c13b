"""What lies in the repository: no machine's paths or hosts, a CI script that runs."""

from __future__ import annotations

import os
import re

import pytest

from tests.architecture.source import ROOT, tracked_files

# Written in parts, so that this file does not find itself.
MACHINE_WORDS = [
    r"/" + r"work/",
    r"/" + r"root/",
    r"/" + r"home/\w+/",
    r"/" + r"opt/(?:wheels|pypi)",
    r"py" + r"pi\.org",
    r"python" + r"hosted\.org",
    r"registry\." + r"npmjs",
    r"debian" + r"\.org",
    r"index" + r"-url[= ]\S*(?:file:|localhost|127\.)",
    r"find" + r"-links",
]


@pytest.mark.parametrize("pattern", MACHINE_WORDS)
def test_no_file_names_a_machines_paths_or_a_registrys_host(pattern: str) -> None:
    found = [
        str(path.relative_to(ROOT))
        for path in tracked_files()
        if re.search(pattern, path.read_bytes().decode(errors="replace"))
    ]
    assert not found


def test_the_ci_script_is_executable_and_ends_with_the_tests() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    text = script.read_text(encoding="utf8")
    assert "set -euo pipefail" in text
    assert text.rstrip().endswith("make check test")


def test_no_model_or_binary_of_size_is_in_the_repository() -> None:
    large = [str(path) for path in tracked_files() if path.stat().st_size > 2**20]
    assert not large


def test_every_direct_dependency_is_pinned_and_locked_at_the_same_version() -> None:
    lock = dict(
        line.lower().split("==")
        for line in (ROOT / "requirements.lock").read_text(encoding="utf8").splitlines()
        if "==" in line and not line.startswith("#")
    )
    project = (ROOT / "pyproject.toml").read_text(encoding="utf8")
    pins = re.findall(r'^    "([\w.-]+)(?:\[\w+\])?==([\w.]+)",', project, re.M)
    assert len(pins) > 20
    for name, version in pins:
        assert lock.get(name.lower()) == version, name
