"""The page against the real deployment: shards end by its order, and the stream in it goes on."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.integration.ray_server import python, running
from tests.support.browser import tab
from tests.support.page_kill import (
    give_token,
    incarnations,
    kill_while_streaming,
    order,
    token_of,
    wait_for_another,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def test_a_stream_goes_on_when_a_shard_is_killed_and_nothing_waits_when_one_is_drained(
    browser: Browser, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    options = ["--model", str(tiny_checkpoint), "--mode", "local", "--port", "0", "--shards", "3"]
    command = python("-m", "trinity_serve.cli.main", "serve", *options, "--kv-memory", "64MiB")
    with (
        tempfile.TemporaryDirectory(prefix="t-") as folder,
        running(command, Path(folder)) as server,
        tab(browser, server.endpoint, viewport={"width": 1280, "height": 1000}) as opened,
    ):
        page = opened.open("cluster")
        page.get_by_role("dialog").wait_for()
        give_token(page, token_of(page))
        expect(page.locator("#shards tbody tr")).to_have_count(3)
        survival = kill_while_streaming(page, 1)
        page.screenshot(path=tmp_path / "killed.png")
        assert survival.tokens_after > survival.tokens_at_kill
        expect(page.locator("#events")).to_contain_text("Shard 1")
        expect(page.locator("#events")).to_contain_text("killed by hand")
        assert "failed" not in page.locator(".stream-state").inner_text()
        num_uncovered = page.get_by_text("have no shard").count()
        before = incarnations(page)["0"]
        order(page, "Drain", 0)
        wait_for_another(page, 0, before)
        expect(page.locator("#events")).to_contain_text("Shard 0 is draining")
        assert page.get_by_text("have no shard").count() == num_uncovered
        # The browser tells of each refusal itself: the token was missing, and the server not ready.
        assert [each for each in opened.problems if not re.search("403|503", each)] == []
