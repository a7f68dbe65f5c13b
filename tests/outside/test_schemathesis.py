"""schemathesis over the served OpenAPI document: no 5xx, nothing hangs, no growth of memory.

`make fuzz` installs it in an environment of its own and runs this.
"""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.server import RunningServer, pss_bytes, trinity_server
from trinity_serve.api.keys import hash_of, new_key

SCHEMATHESIS = Path(__file__).parents[2] / ".venv/tools/schemathesis/bin/schemathesis"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(700),
    pytest.mark.skipif(not SCHEMATHESIS.is_file(), reason="make fuzz installs schemathesis"),
]
WARM_UP_SEED, SEED = "6", "7"
REQUEST_TIMEOUT_S = "20"
MAX_GROWTH_BYTES = 48 << 20
"""Over one run of thousands of requests, after another one that has filled every cache."""


@pytest.fixture
def guarded(tiny_checkpoint: Path, tmp_path: Path) -> Iterator[tuple[RunningServer, str]]:
    """A server with keys over a real engine, and a key that may do all."""
    key, file = new_key(), tmp_path / "keys"
    record = {"name": "fuzz", "sha256": hash_of(key), "scopes": ["inference", "admin"]}
    file.write_text(json.dumps(record))
    model = ("--model", str(tiny_checkpoint), "--served-model-name", "tiny")
    sizes = ("--max-model-len", "256", "--kv-memory", "16MiB", "--threads", "1")
    with trinity_server([*model, *sizes, "--api-keys-file", str(file)]) as server:
        yield server, key


def fuzz(url: str, key: str, seed: str) -> None:
    """Run schemathesis once; a 5xx or a request that gets no answer in time fails it."""
    ran = subprocess.run(
        [
            *(str(SCHEMATHESIS), "run", f"{url}/openapi.json"),
            *("--checks", "not_a_server_error", "--phases", "examples,coverage,fuzzing"),
            *("--mode", "all", "--max-examples", "25", "--max-time", "150", "--seed", seed),
            *("--request-timeout", REQUEST_TIMEOUT_S, "--header", f"Authorization: Bearer {key}"),
        ],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-1000:]


def test_nothing_that_the_document_allows_or_forbids_makes_the_server_fail_or_grow(
    guarded: tuple[RunningServer, str],
) -> None:
    server, key = guarded
    fuzz(server.url, key, WARM_UP_SEED)
    before = pss_bytes(server.process.pid)
    fuzz(server.url, key, SEED)
    grown = pss_bytes(server.process.pid) - before
    assert grown < MAX_GROWTH_BYTES, f"{grown / 2**20:.0f} MiB more"
    assert open_requests(server.url, key) == 0


def open_requests(url: str, key: str) -> int:
    """Return how many requests the server still works on."""
    asked = urllib.request.Request(f"{url}/load", headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(asked, timeout=10) as answer:
        return int(json.load(answer)["server_load"])
