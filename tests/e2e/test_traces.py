"""A request's spans, from its caller to the shards' waiting time, at a receiver of OTLP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.http import inline_server
from tests.support.serving import config_for
from tests.support.spans import Receiver, below, named, receiving
from trinity_serve.config import ServeConfig, parse_serve_args

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
CALLER = f"00-{TRACE_ID}-b7ad6b7169203331-01"
PROMPT = [60 + number % 40 for number in range(90)]
PARTS = ("POST /v1/completions", "generate", "queue", "prefill", "decode", "dispatch", "detokenise")


def traced_config(checkpoint: Path, url: str) -> ServeConfig:
    fields = config_for(checkpoint, num_shards=2).model_dump(exclude_unset=True, mode="json")
    return parse_serve_args(
        fields
        | {
            "observability": {"traces": url},
            "attention": {
                "kv_memory_bytes": "64MiB",
                "max_num_batched_tokens": 64,
                "max_prefill_chunk": 64,
            },
        }
    )


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def test_a_request_is_one_tree_of_spans_without_its_text(
    tiny_checkpoint: Path, receiver: Receiver
) -> None:
    with inline_server(traced_config(tiny_checkpoint, receiver.url)) as url:
        body = {"prompt": PROMPT, "max_tokens": 6, "ignore_eos": True, "stream": True}
        answer = httpx.post(
            f"{url}/v1/completions", json=body, headers={"traceparent": CALLER}, timeout=60.0
        )
        assert answer.status_code == 200
        spans = receiver.await_names(*PARTS)
    assert {span.trace_id for span in spans} == {TRACE_ID}
    request = named(spans, "POST /v1/completions")
    assert request.parent_id == CALLER.split("-")[2]
    assert {span.name for span in below(spans, request)} == {"generate", "detokenise"}
    parts = below(spans, named(spans, "generate"))
    names = [span.name for span in parts]
    assert sorted(names) == ["decode", "dispatch", "prefill", "prefill", "queue"]
    assert all(request.began_ns <= span.began_ns <= span.ended_ns for span in spans)
    dispatch = named(spans, "dispatch").attributes
    assert "95" in str(dispatch["trinity.rows"])  # each of 90 prompt rows once, and 5 outputs
    assert "waited_ms_by_layer" in str(sorted(dispatch))


def test_a_request_that_asks_not_to_be_traced_is_not(
    tiny_checkpoint: Path, receiver: Receiver
) -> None:
    with inline_server(traced_config(tiny_checkpoint, receiver.url)) as url:
        body = {"prompt": [60, 61], "max_tokens": 2}
        for flag in ("00", "01"):
            headers = {"traceparent": CALLER[:-2] + flag}
            httpx.post(f"{url}/v1/completions", json=body, headers=headers, timeout=60.0)
        spans = receiver.await_names("generate")
    assert len([span for span in spans if span.name == "generate"]) == 1


def test_a_receiver_that_is_away_does_not_disturb(tiny_checkpoint: Path) -> None:
    with inline_server(traced_config(tiny_checkpoint, "http://127.0.0.1:9")) as url:
        body = {"prompt": [60, 61], "max_tokens": 2, "ignore_eos": True}
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60.0)
    assert answer.json()["usage"]["completion_tokens"] == 2
