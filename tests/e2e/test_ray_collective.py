"""`trinity serve --transport collective` on Ray: the tokens of one process, rows by groups."""

from __future__ import annotations

from pathlib import Path

import httpx
import numpy as np
import pytest

from cluster.deadline import Deadline
from tests.chaos.faults import Victims
from tests.support.server import trinity_server
from tests.support.serving import config_for, open_serving
from trinity_serve.engine.request import SamplingParams

NUM_SHARDS = 2
# So long that the rows of a prompt's layer are worth a group.
PROMPTS = [np.random.default_rng(n).integers(13, 512, 300).tolist() for n in range(3)]
GREEDY = SamplingParams(max_tokens=8, seed=1, temperature=0.0, ignore_eos=True)
DEADLINE_S = 30.0


def num_gloo_threads(pid: int) -> int:
    """Return how many of a process's threads are Gloo's."""
    names = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/comm")]
    return sum("gloo" in name for name in names)


def tokens_of(url: str, prompt: list[int]) -> list[int]:
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 8, "temperature": 0.0}
    body |= {"ignore_eos": True, "return_token_ids": True}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60.0)
    assert answer.status_code == 200, answer.text
    ids: list[int] = answer.json()["choices"][0]["token_ids"]
    return ids


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_tokens_are_those_of_one_process_and_every_shard_has_a_group(
    tiny_checkpoint: Path,
) -> None:
    expected = open_serving(config_for(tiny_checkpoint)).run(PROMPTS, GREEDY)
    model = ["--model", str(tiny_checkpoint), "--served-model-name", "tiny"]
    scale = ["--shards", str(NUM_SHARDS), "--kv-memory", "32MiB", "--threads", "1"]
    how = ["--mode", "local", "--transport", "collective"]
    with trinity_server([*how, *model, *scale]) as server:
        shards = Victims(server.process.pid, "ray::ExpertShard")
        deadline = Deadline.after(DEADLINE_S)
        # A spare process among them has no rank, and so no group.
        while sum(num_gloo_threads(each.pid) > 0 for each in shards.find()) < NUM_SHARDS:
            assert not deadline.expired(), f"fewer than {NUM_SHARDS} shards have groups"
            tokens_of(server.url, PROMPTS[0][:1])
        assert [tokens_of(server.url, prompt) for prompt in PROMPTS] == expected
