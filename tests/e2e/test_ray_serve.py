"""`trinity serve --mode local` over Ray and four shards answers, to the bit, what `inline` does."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import openai
import pytest
import torch

from tests.integration.ray_server import RayServer, python, running

pytestmark = pytest.mark.timeout(240)

PROMPTS = [[7 + 3 * number, 11, 250 - number, 42 + number] for number in range(16)]
NUM_TOKENS = 16


def serving(mode: str, checkpoint: Path, folder: Path) -> list[str]:
    """Return the command that serves `checkpoint` in this mode."""
    options = ["--model", str(checkpoint), "--mode", mode, "--port", "0", "--shards", "4"]
    names = ["--served-model-name", "tiny", "--dtype", "float32", "--kv-memory", "64MiB"]
    return python("-m", "trinity_serve.cli.main", "serve", *options, *names)


@pytest.fixture(scope="module")
def servers(tiny_checkpoint: Path) -> Iterator[dict[str, RayServer]]:
    """Both servers, by mode."""
    with ExitStack() as stack:
        started = {}
        for mode in ("local", "inline"):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="t-")))
            command = serving(mode, tiny_checkpoint, folder)
            started[mode] = stack.enter_context(running(command, folder))
        yield started


def client_of(server: RayServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.endpoint}/v1", api_key="none", max_retries=0)


def complete(
    server: RayServer, prompt: list[int], temperature: float, stream: bool
) -> tuple[list[int], list[float]]:
    """Return token ids and their logprobs."""
    with client_of(server) as client:
        answer = client.completions.create(
            model="tiny",
            prompt=prompt,
            max_tokens=NUM_TOKENS,
            temperature=temperature,
            seed=1234,
            logprobs=2,
            stream=stream,
            extra_body={"return_token_ids": True, "ignore_eos": True},
        )
        choices = [
            choice
            for part in (answer if isinstance(answer, openai.Stream) else [answer])
            for choice in part.choices
        ]
    ids: list[int] = []
    logprobs: list[float] = []
    for choice in choices:
        ids += (choice.model_extra or {}).get("token_ids") or []
        if choice.logprobs is not None:
            logprobs += [value or 0.0 for value in choice.logprobs.token_logprobs or []]
    return ids, logprobs


def complete_all(
    server: RayServer, temperature: float, stream: bool
) -> list[tuple[list[int], list[float]]]:
    """Send all prompts at once."""
    with ThreadPoolExecutor(len(PROMPTS)) as threads:
        return list(threads.map(lambda p: complete(server, p, temperature, stream), PROMPTS))


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("temperature", [0.0, 0.9], ids=["greedy", "sampled"])
def test_tokens_and_logprobs_equal_inline_bit_for_bit(
    servers: dict[str, RayServer], temperature: float, stream: bool
) -> None:
    on_ray = complete_all(servers["local"], temperature, stream)
    assert all(len(ids) == len(logprobs) == NUM_TOKENS for ids, logprobs in on_ray)
    assert on_ray == complete_all(servers["inline"], temperature, stream)


def test_greedy_tokens_equal_transformers(
    servers: dict[str, RayServer], tiny_checkpoint: Path
) -> None:
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    model = AutoModelForCausalLM.from_pretrained(
        tiny_checkpoint,
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
    ).eval()  # type: ignore[no-untyped-call]
    for prompt, (ids, _) in zip(PROMPTS, complete_all(servers["local"], 0.0, True), strict=True):
        # One pass over prompt and answer: row i chooses token i + 1.
        with torch.no_grad():
            chosen = model(torch.tensor([prompt + ids])).logits[0].argmax(dim=-1)
        assert chosen[len(prompt) - 1 : -1].tolist() == ids


def test_every_shard_is_a_process_of_its_own(servers: dict[str, RayServer]) -> None:
    assert len(servers["local"].pids("ray::ExpertShard")) == 4
