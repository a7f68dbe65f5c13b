"""What the doctor says about machines that are well and machines that are not."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from trinity_serve.cli import doctor, findings
from trinity_serve.cli.findings import Level
from trinity_serve.cli.main import main


@pytest.mark.parametrize(
    ("version", "level"),
    [((3, 10), Level.MISSING), ((3, 11), Level.OK), ((3, 12), Level.OK), ((3, 13), Level.MISSING)],
)
def test_only_pythons_that_the_pins_know_are_accepted(
    version: tuple[int, int], level: Level
) -> None:
    assert findings.python_version(version).level is level


def test_a_package_at_another_version_is_named_with_the_version_wanted() -> None:
    finding = findings.pinned_packages(["click==0.1", "no-such-package==2.0", "numpy==2.4.6"])
    assert finding.level is Level.MISSING
    assert "click" in finding.detail
    assert "wanted 0.1" in finding.detail
    assert "no-such-package absent" in finding.detail
    assert "numpy" not in finding.detail
    assert finding.remedy == "run: make setup"


def test_requirements_of_extras_are_not_asked_for() -> None:
    finding = findings.pinned_packages(['no-such-package==2.0 ; extra == "dev"'])
    assert finding.level is Level.OK


@pytest.mark.parametrize(("kib", "level"), [(2**21, Level.NOTE), (2**23, Level.OK)])
def test_little_free_memory_is_noted(tmp_path: Path, kib: int, level: Level) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: 99 kB\nMemAvailable:   {kib} kB\n")
    assert findings.free_memory(meminfo).level is level


def test_a_machine_that_does_not_tell_its_memory_is_noted(tmp_path: Path) -> None:
    assert findings.free_memory(tmp_path / "absent").level is Level.NOTE


@pytest.mark.parametrize(
    ("text", "level"),
    [("always [madvise] never", Level.OK), ("always madvise [never]", Level.NOTE)],
)
def test_the_chosen_huge_page_setting_is_read(tmp_path: Path, text: str, level: Level) -> None:
    setting = tmp_path / "enabled"
    setting.write_text(text)
    assert findings.huge_pages(setting).level is level


def test_a_port_in_use_is_noted_and_another_one_proposed() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        finding = findings.free_port("127.0.0.1", listener.getsockname()[1])
    assert finding.level is Level.NOTE
    assert "PORT=" in finding.remedy


def test_a_module_that_does_not_load_is_missing() -> None:
    finding = findings.importable("no_such_module")
    assert finding.level is Level.MISSING
    assert "no_such_module" in finding.detail


def test_the_doctors_exit_code_is_1_when_something_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ill = findings.Finding("liver", Level.MISSING, "not there", "grow one")
    monkeypatch.setattr(doctor, "examine", lambda _port: iter([ill]))
    assert main(["doctor"]) == 1
    assert "grow one" in capsys.readouterr().out


def test_the_doctor_finds_this_environment_fit_to_serve(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["doctor", "--port", "0"]) == 0
    assert "MISS" not in capsys.readouterr().out
