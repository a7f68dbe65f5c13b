"""`trinity keys`, and commands that present a key."""

from __future__ import annotations

from pathlib import Path

import pytest

from trinity_serve.api.keys import KeyRing
from trinity_serve.cli.admin import AdminClient
from trinity_serve.cli.endpoint import Endpoint
from trinity_serve.cli.main import main


def test_a_new_key_is_printed_once_and_opens_what_its_scopes_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "keys"
    options = ["--file", str(path), "--scope", "admin", "--requests-per-minute", "9"]
    assert main(["keys", "new", "--name", "ops", *options]) == 0
    key = capsys.readouterr().out.strip()
    record = KeyRing(file=path).find(key)
    assert record is not None
    assert (record.name, record.scopes, record.requests_per_minute) == ("ops", ("admin",), 9)
    assert main(["keys", "list", "--file", str(path)]) == 0
    assert capsys.readouterr().out == "ops  admin\n"
    assert main(["keys", "new", "--name", "ops", *options]) == 2
    assert main(["keys", "new", "--name", "two words", *options]) == 2


def test_commands_send_the_key_they_are_given() -> None:
    assert Endpoint("http://h", "k")._headers["Authorization"] == "Bearer k"
    assert "Authorization" not in Endpoint("http://h")._headers
    assert AdminClient("http://h", api_key="k")._token == "k"
