"""Orders about shards given on the page while a stream runs in it, as an operator would."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

from playwright.sync_api import Page, expect

RECOVERY_MS = 60_000


@dataclass(frozen=True)
class Survival:
    """What a reader saw of it."""

    tokens_at_kill: int
    tokens_after: int
    """Once every expert had a shard again."""


def tokens_shown(page: Page) -> int:
    """Return how many tokens the page's stream has had."""
    found = re.search(r"(\d+) tokens?", page.locator(".stream-state").inner_text())
    return int(found[1]) if found else 0


def give_token(page: Page, token: str) -> None:
    """Answer the page's question for the admin token."""
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Admin key or token").fill(token)
    dialog.get_by_role("button", name="Use them").click()


def token_of(page: Page) -> str:
    """Read the token where the page says that it lies."""
    path = page.locator("#token-hint").inner_text().split()[-1]
    with open(path, encoding="utf8") as file:
        return file.read()


def incarnations(page: Page) -> Mapping[str, str]:
    """Return the life of each shard that is shown."""
    names = page.locator("#shards tbody th span[title]")
    shown = names.evaluate_all("nodes => nodes.map((node) => [node.textContent, node.title])")
    return dict(shown)


def kill_while_streaming(
    page: Page, shard: int, num_before: int = 20, num_after: int = 20
) -> Survival:
    """Start a stream, kill the shard, wait until another process serves and the stream has gone on.

    `num_before` and `num_after`: tokens to wait for before the kill, and after it.
    Raises AssertionError when that takes longer than `RECOVERY_MS`.
    """
    page.get_by_role("button", name="Start a stream").click()
    _wait_for_tokens(page, num_before)
    before = incarnations(page)[str(shard)]
    order(page, "Kill", shard)
    tokens_at_kill = tokens_shown(page)
    wait_for_another(page, shard, before)
    _wait_for_tokens(page, tokens_at_kill + num_after)
    return Survival(tokens_at_kill, tokens_shown(page))


def order(page: Page, name: str, shard: int) -> None:
    """Press `Kill` or `Drain` and confirm it."""
    page.get_by_role("button", name=f"{name} shard {shard}").click()
    page.get_by_role("dialog").get_by_role("button", name=name).click()
    expect(page.locator("#events")).to_contain_text(f"You ordered: {name.lower()} shard {shard}")


def wait_for_another(page: Page, shard: int, before: str) -> None:
    """Wait until another process than `before` serves on the seat and every expert is covered."""
    row = page.locator("#shards tbody tr").nth(shard)
    life = row.locator("th span[title]")
    expect(life).not_to_have_attribute("title", before, timeout=RECOVERY_MS)
    expect(row.locator(".state")).to_have_text("ready", timeout=RECOVERY_MS)
    expect(page.locator(".tile", has_text="Coverage")).to_contain_text("complete")


def _wait_for_tokens(page: Page, num_tokens: int) -> None:
    until_s = time.monotonic() + RECOVERY_MS / 1000
    while tokens_shown(page) < num_tokens:
        assert time.monotonic() < until_s, page.locator(".stream-state").inner_text()
        page.wait_for_timeout(100)
