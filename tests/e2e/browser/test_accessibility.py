"""axe finds nothing in either view, in either theme, nor in what opens on top of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from tests.e2e.browser.conftest import GuardedServer
from tests.e2e.browser.test_chat_page import HOSTILE, answered_by
from tests.e2e.browser.test_cluster_page import give_keys
from tests.support.browser import Tab, tab

Theme = Literal["light", "dark"]


def violations(page: Page) -> list[str]:
    """Return rule and element of everything that axe finds, of any kind."""
    found = Axe().run(page).response["violations"]
    return [f"{rule['id']}: {node['html'][:160]}" for rule in found for node in rule["nodes"]]


@pytest.fixture(params=["light", "dark"])
def made(request: pytest.FixtureRequest, browser: Browser, guarded: GuardedServer) -> Iterator[Tab]:
    """A tab in one theme."""
    with tab(browser, guarded.url, color_scheme=request.param) as opened:
        yield opened


def test_the_chat_and_its_settings(made: Tab, guarded: GuardedServer) -> None:
    page = made.open()
    page.get_by_role("dialog").wait_for()
    assert violations(page) == []
    give_keys(page, guarded.user_key, "")
    call = {"index": 0, "id": "1", "function": {"name": "weather", "arguments": "{}"}}
    answered_by(page, {"reasoning": "Hm."}, {"content": HOSTILE}, {"tool_calls": [call]})
    made.ask("Show everything.")
    page.get_by_text("Reasoning, 1 word").click()
    page.get_by_role("button", name="Settings").click()
    page.get_by_text("Tools", exact=True).click()
    assert violations(page) == []


def test_the_cluster_and_its_question(made: Tab, guarded: GuardedServer) -> None:
    guarded.cluster.states[1:4] = ["joining", "suspect", "draining"]
    page = made.open("cluster")
    page.get_by_role("dialog").wait_for()
    give_keys(page, guarded.user_key, guarded.admin_key)
    page.get_by_role("button", name="Kill shard 7").click()
    assert violations(page) == []
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    assert violations(page) == []
