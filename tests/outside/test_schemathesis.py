"""schemathesis over the served OpenAPI document: no 5xx, nothing hangs, whatever a client sends.

`make fuzz` installs it in an environment of its own and runs this.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.server import trinity_server
from trinity_serve.api.keys import hash_of, new_key

SCHEMATHESIS = Path(__file__).parents[2] / ".venv/tools/schemathesis/bin/schemathesis"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not SCHEMATHESIS.is_file(), reason="make fuzz installs schemathesis"),
]
SEED = "7"
REQUEST_TIMEOUT_S = "20"


@pytest.fixture
def guarded(tiny_checkpoint: Path, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """A server with keys over a real engine: its URL and a key that may do all."""
    key, file = new_key(), tmp_path / "keys"
    record = {"name": "fuzz", "sha256": hash_of(key), "scopes": ["inference", "admin"]}
    file.write_text(json.dumps(record))
    model = ("--model", str(tiny_checkpoint), "--served-model-name", "tiny")
    sizes = ("--max-model-len", "256", "--kv-memory", "16MiB", "--threads", "1")
    with trinity_server([*model, *sizes, "--api-keys-file", str(file)]) as server:
        yield server.url, key


def test_nothing_that_the_document_allows_or_forbids_makes_the_server_fail(
    guarded: tuple[str, str],
) -> None:
    url, key = guarded
    ran = subprocess.run(
        [
            *(str(SCHEMATHESIS), "run", f"{url}/openapi.json"),
            *("--checks", "not_a_server_error", "--phases", "examples,coverage,fuzzing"),
            *("--mode", "all", "--max-examples", "25", "--max-time", "200", "--seed", SEED),
            *("--request-timeout", REQUEST_TIMEOUT_S, "--header", f"Authorization: Bearer {key}"),
        ],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-1000:]
