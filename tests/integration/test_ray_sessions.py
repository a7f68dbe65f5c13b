"""Requests of one session go to one rank, whichever way the session is named."""

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


def test_a_session_named_by_header_stays_on_its_rank(deployment: Deployment) -> None:
    """Eight sessions: with one rank for all of them the test would show nothing."""
    ids = {f"s{number}": [str(uuid4()) for _ in range(4)] for number in range(8)}
    for session, request_ids in ids.items():
        for request_id in request_ids:
            headers = {"X-Request-Id": request_id, "X-Session-Id": session}
            generate(deployment.endpoint, MODEL, [5, 6, 7], 2, headers=headers)

    def all_logged() -> bool:
        text = "".join(logs_of_ranks(deployment))
        return all(each in text for request_ids in ids.values() for each in request_ids)

    eventually(all_logged)
    used: set[int] = set()
    for request_ids in ids.values():
        homes = {
            number
            for number, text in enumerate(logs_of_ranks(deployment))
            if any(each in text for each in request_ids)
        }
        assert len(homes) == 1
        used |= homes
    assert len(used) == 2
