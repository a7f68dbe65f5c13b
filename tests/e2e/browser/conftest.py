"""Chromium, and servers made for what the page does with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.e2e.conftest import RunningServer, ScriptedServer, listening
from tests.fakes.cluster_admin import FakeCluster
from tests.fakes.scripted_engine import ScriptedEngine
from tests.support.browser import Tab, chromium, find_chromium, tab
from trinity_serve.admin_token import AdminToken
from trinity_serve.api.auth import gate_of
from trinity_serve.api.cluster import cluster_router
from trinity_serve.api.keys import hash_of, new_key
from trinity_serve.api.limits import ApiLimits
from trinity_serve.api.server import create_app
from trinity_serve.api.service import ModelService
from trinity_serve.config.security import ApiKeyRecord, SecurityConfig
from trinity_serve.model.generation_config import GenerationDefaults


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium; by module, since its client holds the thread's event loop while it runs."""
    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium on this machine: `make browser` says what is needed")
    with chromium(path) as running:
        yield running


@pytest.fixture
def scripted(browser: Browser, scripted_server: ScriptedServer) -> Iterator[Tab]:
    """A tab at a server whose tokens are known; nothing may go wrong in it."""
    with tab(browser, scripted_server.url) as opened:
        yield opened
    assert opened.problems == []
    assert opened.foreign == []


@pytest.fixture
def inline(browser: Browser, inline_process: RunningServer) -> Iterator[Tab]:
    """A tab at `trinity serve --mode inline`; nothing may go wrong in it."""
    with tab(browser, inline_process.url) as opened:
        yield opened
    assert opened.problems == []
    assert opened.foreign == []


@dataclass(frozen=True)
class GuardedServer:
    """A server that asks for keys, over a cluster that obeys."""

    url: str
    user_key: str
    admin_key: str
    cluster: FakeCluster


@pytest.fixture
def guarded(tiny_checkpoint: Path, tmp_path: Path) -> Iterator[GuardedServer]:
    """See `GuardedServer`."""
    user_key, admin_key = new_key(), new_key()
    records = (
        ApiKeyRecord(name="user", sha256=hash_of(user_key)),
        ApiKeyRecord(name="operator", sha256=hash_of(admin_key), scopes=("admin",)),
    )
    service = ModelService.from_folder(
        tiny_checkpoint,
        name="tiny",
        defaults=GenerationDefaults(eos_token_ids=(3,)),
        max_model_len=500,
        vocab_size=512,
    )
    gate = gate_of(SecurityConfig(api_keys=records))
    app = create_app(ScriptedEngine(), service, ApiLimits(), gate=gate)
    cluster = FakeCluster()
    app.include_router(cluster_router(cluster, AdminToken.open(tmp_path)))
    with listening(app) as url:
        yield GuardedServer(url, user_key, admin_key, cluster)
    service.close()
