"""API keys at rest: what a file keeps, and whose a key is."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from cluster.errors import ConfigError
from trinity_serve.api.keys import (
    KeyRing,
    append_key,
    hash_of,
    new_key,
    read_key_file,
    records_of,
)
from trinity_serve.config.security import ApiKeyRecord


def added(path: Path, name: str) -> str:
    key = new_key()
    append_key(path, ApiKeyRecord(name=name, sha256=hash_of(key)))
    return key


def test_a_file_keeps_hashes_and_is_its_users_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    key = added(path, "alice")
    assert key not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [record.name for record in read_key_file(path)] == ["alice"]


def test_a_name_is_given_once(tmp_path: Path) -> None:
    added(tmp_path / "keys", "alice")
    with pytest.raises(ConfigError, match="named alice already"):
        added(tmp_path / "keys", "alice")


def test_a_key_is_found_by_its_whole_text(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    alice, bob = added(path, "alice"), added(path, "bob")
    ring = KeyRing(file=path)
    assert [found.name for key in (alice, bob) if (found := ring.find(key))] == ["alice", "bob"]
    for wrong in (alice[:-1], alice + "x", hash_of(alice), "", "ключ", "\udcff"):
        assert ring.find(wrong) is None


def test_a_key_with_the_first_digits_of_anothers_hash_is_not_that_key() -> None:
    digest = hash_of("one")
    ring = KeyRing([ApiKeyRecord(name="a", sha256=digest[:8] + "0" * 56)])
    assert ring.find("one") is None


def test_a_changed_file_counts_without_a_restart_and_a_broken_one_locks_nobody_out(
    tmp_path: Path,
) -> None:
    path, now_s = tmp_path / "keys", [0.0]
    alice = added(path, "alice")
    ring = KeyRing(file=path, clock=lambda: now_s[0])
    bob = added(path, "bob")
    now_s[0] += 2.0
    assert ring.find(bob) is not None
    path.write_text("{")
    now_s[0] += 2.0
    assert ring.find(alice) is not None
    assert "line 1" in ring.problem
    path.write_text("")
    now_s[0] += 2.0
    assert ring.find(alice) is None
    assert ring.problem == ""


@pytest.mark.parametrize(
    "line", ['{"name": "a"}', '{"name": "a b", "sha256": "%s"}' % ("0" * 64), "secret", "[]"]
)
def test_a_wrong_line_is_named_by_number_and_never_quoted(tmp_path: Path, line: str) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# made by hand\n\n{line}\n")
    with pytest.raises(ConfigError, match="line 3") as refused:
        read_key_file(path)
    assert "secret" not in str(refused.value)


def test_a_file_that_is_not_there_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="readable file"):
        KeyRing(file=tmp_path / "absent")


def test_the_environments_keys_become_hashes_with_names_and_scopes() -> None:
    first, second = "x" * 20, "y=" + "z" * 20
    records = records_of(f"alice={first}, ops:admin={second}")
    assert [(record.name, record.scopes) for record in records] == [
        ("alice", ("inference",)),
        ("ops", ("inference", "admin")),
    ]
    assert [record.sha256 for record in records] == [hash_of(first), hash_of(second)]


@pytest.mark.parametrize("text", ["alice=guessable", "sk-" + "q" * 30, "a:root=" + "q" * 30])
def test_a_wrong_environment_is_refused_without_its_keys(text: str) -> None:
    with pytest.raises(ConfigError, match="key 1") as refused:
        records_of(text)
    assert "guessable" not in str(refused.value)
    assert "qqq" not in str(refused.value)
