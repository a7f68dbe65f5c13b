"""guidellm loads the inline server, by chat and by completions, and none of its requests fails.

`make guidellm` installs the tool into an environment of its own; without it the tests are skipped.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict, cast

import pytest

from tests.support.http import inline_server
from tests.support.serving import config_for

TOOL = Path(sys.prefix) / "tools/guidellm/bin/guidellm"
NUM_REQUESTS = 12
OUTPUT_TOKENS = 16

pytestmark = [
    pytest.mark.skipif(not TOOL.exists(), reason="make guidellm installs guidellm"),
    pytest.mark.slow,
    pytest.mark.timeout(300),
]


class Outcome(TypedDict):
    """How many of a load's requests ended how."""

    successful: int
    errored: int
    incomplete: int
    total: int


@pytest.fixture(scope="module")
def url(tiny_checkpoint: Path) -> Iterator[str]:
    with inline_server(config_for(tiny_checkpoint, num_shards=2)) as url:
        yield url


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_every_request_of_the_load_succeeds(
    url: str, path: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    command = [str(TOOL), "run", "--disable-console"]
    command += [
        "--backend",
        f"kind=openai_http,target={url},model=checkpoint,request_format={path}",
    ]
    command += ["--profile", "kind=concurrent,streams=4"]
    command += ["--constraint", f"kind=max_requests,count={NUM_REQUESTS}"]
    command += ["--tokenizer", f"kind=hf_auto,model={tiny_checkpoint}"]
    data = f"kind=synthetic_text,prompt_tokens=32,output_tokens={OUTPUT_TOKENS}"
    command += ["--data", data, "--output", f"kind=json,path={tmp_path / 'report.json'}"]
    environment = {"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [benchmark] = json.loads((tmp_path / "report.json").read_text(encoding="utf8"))["benchmarks"]
    outcome = cast(Outcome, benchmark["metrics"]["request_totals"])
    assert outcome == {
        "successful": NUM_REQUESTS,
        "errored": 0,
        "incomplete": 0,
        "total": NUM_REQUESTS,
    }
    for request in benchmark["requests"]["successful"]:
        assert request["output_metrics"]["text_tokens"] == OUTPUT_TOKENS
