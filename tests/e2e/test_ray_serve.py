"""`trinity serve --mode local` over Ray and four shards answers, to the bit, what `inline` does."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import openai
import pytest
import torch

from tests.integration.ray_server import REPOSITORY, RayServer, eventually, python, running
from tests.support.listening import listening_ports
from tests.support.ray_dashboard import Dashboard, metrics_asked_for
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


NOT_SHOWN = {"ray_vllm_num_requests_swapped"}
"""Nothing is swapped here."""
ROWS = ("Throughput", "Latency", "Cache", "Request Length", "Scheduler", "Token Distribution")
"""Of Ray's Serve LLM dashboard; the others are of NIXL and of offloaded KV."""


def test_ray_shows_every_metric_that_its_serve_llm_dashboard_asks_for(
    servers: dict[str, RayServer],
) -> None:
    for _ in range(2):
        # Long enough for the second to find blocks of the first.
        complete(servers["local"], list(range(100, 200)), 0.0, True)
    names = metrics_asked_for(ROWS) - NOT_SHOWN
    assert len(names) > 10

    missing = set(names)

    def shown() -> bool:
        text = metrics_of_node(servers["local"])
        for name in sorted(missing):
            if re.search(rf'^{name}(_total|_sum)?{{.*model_name="tiny"', text, re.M):
                missing.discard(name)
        return not missing

    with suppress(AssertionError):
        eventually(shown)
    assert not missing
    for name, deployment in (
        ("vllm_num_requests_running", "AttentionRank"),
        ("vllm_time_to_first_token_seconds_count", "Ingress"),
    ):
        eventually(lambda: deployments_beside(name, servers["local"]) == {deployment})  # noqa: B023


def deployments_beside(name: str, server: RayServer) -> set[str]:
    """Return the deployments whose processes show metric `name`.

    The panels name the replica of a number by the process that also counts Serve's requests. Ray
    fetches each number at its own time, so that one may be there before the other.
    """
    text = metrics_of_node(server)
    (worker,) = set(re.findall(rf'^ray_{name}{{.*WorkerId="(\w+)"', text, re.M))
    counted = rf'^ray_serve_deployment_request_counter_total{{.*WorkerId="{worker}".*'
    return set(re.findall(r'deployment="(\w+)"', "".join(re.findall(counted, text, re.M))))


@pytest.fixture
def dashboard(servers: dict[str, RayServer]) -> Dashboard:
    return Dashboard.printed_in((servers["local"].folder / "server.log").read_text())


def test_the_dashboard_asks_for_the_token(dashboard: Dashboard) -> None:
    for path in ("/api/serve/applications/", "/api/v0/actors"):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            Dashboard(dashboard.url, "").text(path)


def test_the_dashboard_shows_deployments_and_actors_under_speaking_names(
    dashboard: Dashboard,
) -> None:
    application = dashboard.applications()["trinity"]
    assert application["status"] == "RUNNING"
    deployments = application["deployments"]
    assert set(deployments) == {"Ingress", "AttentionRank", "ExpertPool"}
    assert {each["status"] for each in deployments.values()} == {"HEALTHY"}

    actors = [(str(each["class_name"]), str(each["name"])) for each in dashboard.actors()]
    shards = sorted(name for kind, name in actors if kind == "ExpertShard")
    assert [name.rpartition(":")[0] for name in shards] == [
        f"ExpertShard:trinity:{index}" for index in range(4)
    ]
    replicas = {kind for kind, _ in actors if kind.startswith("ServeReplica")}
    assert replicas == {f"ServeReplica:trinity:{name}" for name in deployments}


def test_a_request_is_found_by_its_id_in_the_logs_of_every_process_it_went_through(
    servers: dict[str, RayServer], dashboard: Dashboard
) -> None:
    request_id = str(uuid.uuid4())
    with client_of(servers["local"]) as client:
        client.completions.create(
            model="tiny", prompt="x", max_tokens=2, extra_headers={"X-Request-Id": request_id}
        )
    for name in ("Ingress", "AttentionRank"):
        (replica,) = dashboard.applications()["trinity"]["deployments"][name]["replicas"]
        node_id = str(replica["node_id"])
        files = dashboard.log_files(node_id, f"**/replica_trinity_{name}_*")
        assert len(files) == 1, files
        eventually(lambda: request_id in dashboard.log(node_id, files[0]))  # noqa: B023


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
    # Joins the cluster when somebody first looks at Serve there.
    "ray-dashboard-ServeHead": 1,
    "ray::DashboardAgent": 4,
    "ray::RuntimeEnvAgent": 1,
    "ray::ServeReplica": 2,
    "ray::ServeController": 1,
    "ray::ProxyActor": 1,
    "ray::": 1,
    "trinity_serve.cli.main": 1,
}
OUR_PORTS = {"ray::ServeReplica:trinity:Ingress": 2, "ray::ProxyActor": 1}
"""On loopback: the event stream, and HTTP twice."""


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


@pytest.fixture(scope="module")
def inline_answers(
    servers: dict[str, RayServer],
) -> dict[float, list[tuple[list[int], list[float]]]]:
    """What `inline` answers to all prompts, greedy and sampled."""
    return {each: complete_all(servers["inline"], each, True) for each in (0.0, 0.9)}


def scale(server: RayServer, num_shards: int) -> None:
    """Have another number of shards, by command; return once they serve."""
    command = python("-m", "trinity_serve.cli.main", "scale", "--shards", str(num_shards))
    done = subprocess.run(
        [*command, "--url", server.endpoint, "--timeout", "100"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "num_shards", [pytest.param(1, marks=SLOW), 2, pytest.param(8, marks=SLOW), 4]
)
def test_another_number_of_shards_changes_no_bit(
    servers: dict[str, RayServer],
    inline_answers: dict[float, list[tuple[list[int], list[float]]]],
    num_shards: int,
) -> None:
    server = servers["local"]
    with ThreadPoolExecutor(1) as scaling:
        scaled = scaling.submit(scale, server, num_shards)
        meanwhile = complete_all(server, 0.9, True)
        scaled.result()
    assert meanwhile == inline_answers[0.9]
    eventually(lambda: len(server.pids("ray::ExpertShard")) == num_shards)
    for temperature, expected in inline_answers.items():
        assert complete_all(server, temperature, True) == expected
