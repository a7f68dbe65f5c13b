"""Takes the pictures of docs/: `python -m tests.support.page_pictures`.

A real deployment of the demo checkpoint on this machine: the chat in the light theme, and the
cluster in the dark one, a shard having been killed from the page while its stream ran.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from playwright.sync_api import Browser, expect

from tests.integration.ray_server import REPOSITORY, python, running
from tests.support.browser import chromium, find_chromium, tab
from tests.support.page_kill import give_token, kill_while_streaming, token_of

DOCS = REPOSITORY / "docs"
CHAT_SIZE = {"width": 1240, "height": 720}
CLUSTER_SIZE = {"width": 1280, "height": 1000}
NUM_TOKENS_BEFORE = 600
"""Of the stream, before the shard is killed: they fill the chart."""


def take_chat(browser: Browser, url: str) -> None:
    """Have a short talk and take its picture."""
    with tab(browser, url, color_scheme="light", viewport=CHAT_SIZE) as opened:
        page = opened.open()
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("System prompt").fill("You are a model with random weights.")
        page.get_by_label("Longest answer").fill("40")
        opened.ask("Say hello.")
        opened.ask("And what do the experts do?")
        expect(page.locator("#ready")).to_have_text("ready")
        page.screenshot(path=DOCS / "page-chat.png")


def take_cluster(browser: Browser, url: str) -> None:
    """Kill a shard under a stream and take the picture once all is well again."""
    with tab(browser, url, color_scheme="dark", viewport=CLUSTER_SIZE) as opened:
        page = opened.open("cluster")
        page.get_by_role("dialog").wait_for()
        give_token(page, token_of(page))
        expect(page.locator("#shards tbody tr")).to_have_count(4)
        kill_while_streaming(page, 2, NUM_TOKENS_BEFORE, num_after=100)
        expect(page.locator("#ready")).to_have_text("ready")
        page.screenshot(path=DOCS / "page-cluster.png")


def main() -> None:
    """Take both."""
    path = find_chromium()
    if path is None:
        raise SystemExit("no Chromium on this machine: `make browser` says what is needed")
    options = ["--model", str(REPOSITORY / "models/demo"), "--mode", "local", "--port", "0"]
    command = python("-m", "trinity_serve.cli.main", "serve", *options, "--shards", "4")
    with (
        tempfile.TemporaryDirectory(prefix="t-") as folder,
        running(command, Path(folder)) as server,
        chromium(path) as browser,
    ):
        take_chat(browser, server.endpoint)
        take_cluster(browser, server.endpoint)


if __name__ == "__main__":
    main()
