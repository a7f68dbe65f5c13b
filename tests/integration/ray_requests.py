"""Requests of the tests on Ray: single answers, and many streams of which each is watched."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from tests.integration.ray_server import eventually

REQUEST_TIMEOUT_S = 90.0


def post(
    endpoint: str, path: str, body: Mapping[str, object], headers: Mapping[str, str] | None = None
) -> Iterator[dict[str, object]]:
    """Yield the chunks of a streamed answer, or the one object of another."""
    request = urllib.request.Request(
        endpoint + path,
        json.dumps(body).encode(),
        {"Content-Type": "application/json", **(headers or {})},
    )
    with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_S) as answer:
        if not body.get("stream"):
            yield json.load(answer)
            return
        for line in answer:
            data = line.strip().removeprefix(b"data: ")
            if data.startswith(b"{"):
                yield json.loads(data)


def generate(
    endpoint: str,
    model: str,
    prompt_ids: Sequence[int],
    num_tokens: int,
    into: list[int] | None = None,
    headers: Mapping[str, str] | None = None,
) -> list[int]:
    """Return the tokens of one greedy stream; `into` gets each as it comes."""
    ids: list[int] = [] if into is None else into
    body = {
        "model": model,
        "prompt": list(prompt_ids),
        "max_tokens": num_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "return_token_ids": True,
    }
    for chunk in post(endpoint, "/v1/completions", body, headers):
        assert "error" not in chunk, chunk
        choices = chunk["choices"]
        assert isinstance(choices, list)
        for choice in choices:
            ids += choice.get("token_ids") or []
    return ids


def is_ready(endpoint: str) -> bool:
    """Whether `/ready` answers 200."""
    try:
        with urllib.request.urlopen(f"{endpoint}/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


class Streams:
    """Greedy streams that run at once, one per prompt."""

    def __init__(
        self, endpoint: str, model: str, prompts: Sequence[Sequence[int]], num_tokens: int
    ) -> None:
        self._ids: list[list[int]] = [[] for _ in prompts]
        self._threads = ThreadPoolExecutor(len(prompts), thread_name_prefix="stream")
        self._futures = [
            self._threads.submit(generate, endpoint, model, prompt, num_tokens, ids)
            for prompt, ids in zip(prompts, self._ids, strict=True)
        ]

    def await_middle(self, num_tokens: int) -> None:
        """Return when each stream has so many tokens, and fail when one has ended already."""
        eventually(lambda: all(len(ids) >= num_tokens for ids in self._ids), timeout_s=60)
        assert not any(future.done() for future in self._futures)

    @property
    def num_open(self) -> int:
        """Streams that have not ended."""
        return sum(not future.done() for future in self._futures)

    def results(self) -> list[list[int]]:
        """Wait for every end and return the tokens. Raises what a stream ended with."""
        try:
            return [future.result(REQUEST_TIMEOUT_S) for future in self._futures]
        finally:
            self._threads.shutdown(wait=False, cancel_futures=True)
