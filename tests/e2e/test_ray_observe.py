"""On Ray: a trace crosses processes, and what is exported is what the list of metrics says."""

from __future__ import annotations

import json
import re
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from cluster.metric_spec import Source
from tests.integration.ray_server import RayServer, eventually, python, running
from tests.support.spans import Receiver, below, named, receiving
from trinity_serve.observe.scraping import DISCOVERY_FILE, find_ray, ray_folders
from trinity_serve.observe.specs import SPECS

pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
CALLER = f"00-{TRACE_ID}-b7ad6b7169203331-01"


@dataclass(frozen=True)
class Observed:
    """A server on Ray that has served one request, and what it told of it."""

    server: RayServer
    receiver: Receiver


@pytest.fixture(scope="module")
def observed(tiny_checkpoint: Path) -> Iterator[Observed]:
    with ExitStack() as stack:
        receiver = stack.enter_context(receiving())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="t-")))
        options = ["--model", str(tiny_checkpoint), "--mode", "local", "--port", "0"]
        options += ["--shards", "2", "--kv-memory", "64MiB", "--traces", receiver.url]
        command = python("-m", "trinity_serve.cli.main", "serve", *options)
        server = stack.enter_context(running(command, folder))
        body = {"prompt": [60, 61, 62], "max_tokens": 8, "ignore_eos": True}
        headers = {"traceparent": CALLER}
        for _ in range(2):
            url = f"{server.endpoint}/v1/completions"
            httpx.post(url, json=body, headers=headers, timeout=60.0).raise_for_status()
        yield Observed(server, receiver)


def test_ingress_and_rank_write_into_the_callers_trace(observed: Observed) -> None:
    names = ("POST /v1/completions", "generate", "dispatch")
    spans = observed.receiver.await_names(*names, times=2)
    assert {span.trace_id for span in spans} == {TRACE_ID}
    requests = [span for span in spans if span.name == "POST /v1/completions"]
    assert len(requests) == 2
    for request in requests:
        assert request.instance == "ingress"
        attempt = named(below(spans, request), "generate")
        assert attempt.instance == "rank 0"
        parts = {span.name for span in below(spans, attempt)}
        assert parts == {"queue", "prefill", "decode", "dispatch"}


def series_of(server: RayServer) -> dict[str, set[str]]:
    """Return our series by name with all their labels, as the node's agent shows them."""
    found = find_ray(ray_folders(server.folder))
    assert found is not None
    assert found.discovery_file.name == DISCOVERY_FILE
    groups = json.loads(found.discovery_file.read_text())
    series: dict[str, set[str]] = {}
    for address in {each for group in groups for each in group["targets"]}:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        for name, labels in re.findall(r"^ray_((?:trinity|vllm)_\w+){(.*)} \S+$", text, re.M):
            series.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return series


def test_ray_exports_what_the_list_says_and_nothing_else(observed: Observed) -> None:
    known = {series: spec for spec in SPECS for series in spec.series}
    eventually(lambda: known.keys() <= series_of(observed.server).keys())
    shown = series_of(observed.server)
    assert shown.keys() == known.keys()
    for name, labels in shown.items():
        spec = known[name]
        own = {*spec.labels, *({"le"} if name.endswith("_bucket") else ())}
        own.add("application" if spec.source is Source.POOL else "model_name")
        assert own <= labels, name
