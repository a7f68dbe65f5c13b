"""`trinity serve --mode local` over Ray and four shards answers, to the bit, what `inline` does."""

from __future__ import annotations

import json
import os
import re
import signal
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import openai
import pytest
import torch

from tests.integration.ray_server import RayServer, eventually, python, running
from tests.support.listening import listening_ports
from trinity_serve.processes import descendants

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


def metrics_of_node(server: RayServer) -> str:
    """Return what the node's agent shows to Prometheus."""
    (targets,) = server.folder.glob("trinity-*/ray/prom_metrics_service_discovery.json")
    text = ""
    for address in {each for group in json.loads(targets.read_text()) for each in group["targets"]}:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            text += answer.read().decode()
    return text


def test_ray_shows_the_numbers_of_ranks_and_ingresses_under_vllms_names(
    servers: dict[str, RayServer],
) -> None:
    complete(servers["local"], PROMPTS[0], 0.0, True)
    names = [
        "vllm_num_requests_running",
        "vllm_kv_cache_usage_perc",
        "vllm_generation_tokens_total",
        "vllm_prompt_tokens_total",
        "vllm_prefix_cache_queries_total",
        "vllm_time_to_first_token_seconds_count",
        "vllm_request_success_total",
    ]

    def shown() -> bool:
        text = metrics_of_node(servers["local"])
        return all(re.search(rf'^ray_{name}{{.*model_name="tiny"', text, re.M) for name in names)

    eventually(shown)


def test_ready_is_false_within_three_seconds_of_a_shards_silence(
    servers: dict[str, RayServer],
) -> None:
    server = servers["local"]
    eventually(server.is_ready)
    victim = server.pids("ray::ExpertShard")[0]
    os.kill(victim, signal.SIGSTOP)
    try:
        stopped_s = time.monotonic()
        eventually(lambda: not server.is_ready())
        silent_s = time.monotonic() - stopped_s
    finally:
        os.kill(victim, signal.SIGCONT)
    assert silent_s < 3.0
    eventually(server.is_ready)
    assert server.pids("ray::ExpertShard")[0] == victim
    assert complete(server, PROMPTS[0], 0.0, False) == complete(
        servers["inline"], PROMPTS[0], 0.0, False
    )


RAYS_PORTS = {
    # Command of the process: most ports of Ray's that it may open. SECURITY.md has their guards.
    "gcs_server": 2,
    "raylet": 2,
    "monitor.py": 1,
    "dashboard.py": 3,
    "ray::DashboardAgent": 4,
    "ray::RuntimeEnvAgent": 1,
    "ray::ServeReplica": 2,
    "ray::ServeController": 1,
    "ray::ProxyActor": 1,
    "ray::": 1,
    "trinity_serve.cli.main": 1,
}
OUR_PORTS = {"ray::ServeReplica:trinity:Ingress": 1, "ray::ProxyActor": 1}
"""On loopback: the event stream, and HTTP."""


def test_every_listening_port_is_on_a_list(servers: dict[str, RayServer]) -> None:
    process = servers["local"].process
    below = [process.pid, *(each.pid for each in descendants(process.pid))]
    for pid in below:
        ports = listening_ports([pid])
        if not ports:
            continue
        command = min(ports).command
        most = next((count for name, count in RAYS_PORTS.items() if name in command), 0)
        ours = sum(count for name, count in OUR_PORTS.items() if name in command)
        assert len(ports) <= most + ours, f"a port on neither list: {sorted(ports)}"
        if ours:
            assert sum(not port.is_loopback for port in ports) <= most, sorted(ports)
