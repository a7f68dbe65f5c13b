"""Requests of one session go to one rank, and what is cached draws requests without one."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest

from tests.integration.ray_deployment import MODEL, Deployment
from tests.integration.ray_requests import generate
from tests.integration.ray_server import eventually

pytestmark = pytest.mark.timeout(240)


def logs_of_ranks(deployment: Deployment) -> list[str]:
    """Return the log of every rank there was."""
    folder: Path = deployment.path.parent
    pattern = "ray/session_latest/logs/serve/replica_trinity_AttentionRank_*.log"
    return [path.read_text() for path in sorted(folder.glob(pattern))]


def homes_of(deployment: Deployment, request_ids: list[str]) -> list[int]:
    """Return which rank served each request, by the ranks' logs."""

    def all_logged() -> bool:
        text = "".join(logs_of_ranks(deployment))
        return all(each in text for each in request_ids)

    eventually(all_logged)
    logs = logs_of_ranks(deployment)
    found = [[rank for rank, text in enumerate(logs) if each in text] for each in request_ids]
    return [rank for (rank,) in found]


def test_a_session_named_by_header_stays_on_its_rank(deployment: Deployment) -> None:
    """Eight sessions: with one rank for all of them the test would show nothing."""
    ids = {f"s{number}": [str(uuid4()) for _ in range(4)] for number in range(8)}
    for session, request_ids in ids.items():
        for request_id in request_ids:
            headers = {"X-Request-Id": request_id, "X-Session-Id": session}
            generate(deployment.endpoint, MODEL, [5, 6, 7], 2, headers=headers)
    homes = [set(homes_of(deployment, request_ids)) for request_ids in ids.values()]
    assert [len(each) for each in homes] == [1] * len(ids)
    assert len(set().union(*homes)) == 2


def test_a_prompt_goes_where_its_prefix_is_cached(deployment: Deployment) -> None:
    """Sessions bring eight prompts to both ranks; what begins like one then follows it."""
    warm, following = ([str(uuid4()) for _ in range(8)] for _ in range(2))
    for number, request_id in enumerate(warm):
        headers = {"X-Request-Id": request_id, "X-Session-Id": f"s{number}"}
        prompt = [20 + number, *range(100, 500)]
        cold = generate(deployment.endpoint, MODEL, prompt, 8, headers=headers)
        headers = {"X-Request-Id": following[number]}
        generate(deployment.endpoint, MODEL, [*prompt, *cold, 7], 8, headers=headers)
        assert generate(deployment.endpoint, MODEL, prompt, 8) == cold
    homes = homes_of(deployment, warm)
    assert len(set(homes)) == 2
    assert homes_of(deployment, following) == homes
