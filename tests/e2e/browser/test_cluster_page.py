"""The cluster view in a real browser: keys, live states, orders, and the map of experts."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.browser.conftest import GuardedServer
from tests.e2e.conftest import RunningServer, eventually
from tests.support.browser import Tab, tab


@pytest.fixture
def opened(browser: Browser, guarded: GuardedServer) -> Iterator[Tab]:
    """A tab at a server that asks for keys. The browser tells of each 401 and 403 itself."""
    with tab(browser, guarded.url) as made:
        yield made
    assert [each for each in made.problems if "40" not in each] == []
    assert made.foreign == []


def give_keys(page: Page, api: str, admin: str) -> None:
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("API key", exact=False).first.fill(api)
    dialog.get_by_label("Admin key or token").fill(admin)
    dialog.get_by_role("button", name="Use them").click()


def test_the_page_asks_for_a_key_and_goes_on_with_it(opened: Tab, guarded: GuardedServer) -> None:
    page = opened.open()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("No API key was given")
    give_keys(page, guarded.user_key, "")
    expect(page.locator("#model")).to_have_text("tiny")
    assert opened.ask("hello there")
    assert page.evaluate("JSON.stringify(localStorage)").find(guarded.user_key) == -1
    page.reload()
    expect(page.locator("#model")).to_have_text("tiny")


def test_a_wrong_key_is_asked_for_again(opened: Tab, guarded: GuardedServer) -> None:
    page = opened.open()
    give_keys(page, "sk-wrong", "")
    expect(page.get_by_role("dialog")).to_contain_text("not known here")
    give_keys(page, guarded.user_key, "")
    expect(page.locator("#model")).to_have_text("tiny")


@pytest.fixture
def cluster_page(opened: Tab, guarded: GuardedServer) -> Page:
    """The cluster view with both keys given."""
    page = opened.open("cluster")
    page.get_by_role("dialog").wait_for()
    give_keys(page, guarded.user_key, guarded.admin_key)
    page.get_by_role("button", name="Drain shard 7").wait_for()
    return page


def test_shards_ranks_and_numbers_are_live(cluster_page: Page, guarded: GuardedServer) -> None:
    expect(cluster_page.locator("#shards tbody tr")).to_have_count(8)
    expect(cluster_page.locator("#ranks tbody tr")).to_have_count(2)
    expect(cluster_page.locator(".tile", has_text="KV in use")).to_contain_text("42 %")
    guarded.cluster.states[3] = "suspect"
    row = cluster_page.locator("#shards tbody tr").nth(3)
    expect(row.locator(".state")).to_have_text("suspect")
    expect(cluster_page.locator(".tile", has_text="Coverage")).to_contain_text("missing")
    expect(cluster_page.locator("#events")).to_contain_text("Shard 3 is suspect")


def test_a_kill_is_asked_for_once_more_and_then_ordered(
    cluster_page: Page, guarded: GuardedServer
) -> None:
    kill = cluster_page.get_by_role("button", name="Kill shard 2")
    kill.click()
    cluster_page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    expect(cluster_page.get_by_role("dialog")).to_have_count(0)
    assert guarded.cluster.orders == []
    kill.click()
    cluster_page.get_by_role("dialog").get_by_role("button", name="Kill").click()
    expect(cluster_page.locator("#events")).to_contain_text("Shard 2 (3): killed")
    assert guarded.cluster.orders == [("kill", 2, 3)]
    expect(kill).to_be_disabled()


def test_a_drain_is_ordered(cluster_page: Page, guarded: GuardedServer) -> None:
    cluster_page.get_by_role("button", name="Drain shard 0").click()
    cluster_page.get_by_role("dialog").get_by_role("button", name="Drain").click()
    expect(cluster_page.locator("#shards tbody tr").first).to_contain_text("draining")
    assert guarded.cluster.orders == [("drain", 0, 1)]


def test_the_map_is_read_by_keyboard_and_shows_moves(cluster_page: Page) -> None:
    canvas = cluster_page.locator("canvas.heat")
    canvas.focus()
    cluster_page.keyboard.press("ArrowDown")
    cluster_page.keyboard.press("ArrowRight")
    expect(cluster_page.locator("#map-detail")).to_contain_text("Layer 1, expert 1:")
    expect(canvas).to_have_attribute("aria-label", re.compile("54 layers × 256 experts"))
    expect(cluster_page.locator("#events")).to_contain_text("experts changed shards")


def test_each_way_to_colour_the_map_paints_another_picture(
    cluster_page: Page, guarded: GuardedServer
) -> None:
    pictures = set()
    for mode in ("Traffic", "Placement", "Copies"):
        cluster_page.get_by_role("radio", name=mode).check(force=True)
        pictures.add(
            cluster_page.locator("canvas.heat").evaluate(
                "canvas => canvas.toDataURL().slice(0, 9000)"
            )
        )
    assert len(pictures) == 3


def test_a_server_that_does_not_answer_is_told_and_asked_again(
    cluster_page: Page, opened: Tab
) -> None:
    problem = cluster_page.locator("#cluster-problem")
    cluster_page.route("**/v1/cluster/experts*", lambda route: route.abort())
    expect(problem).to_have_text("The server does not answer.")
    cluster_page.unroute("**/v1/cluster/experts*")
    expect(problem).to_be_hidden()
    opened.problems.clear()  # the browser tells of each call that failed


def test_a_view_that_is_not_seen_asks_for_nothing(
    cluster_page: Page, guarded: GuardedServer
) -> None:
    cluster_page.get_by_role("link", name="Chat").click()
    cluster_page.locator("#chat").wait_for()
    cluster_page.wait_for_load_state("networkidle")
    before = guarded.cluster.num_maps
    cluster_page.get_by_role("link", name="Cluster").click()
    assert eventually(lambda: guarded.cluster.num_maps > before, 10.0)


def test_inline_shows_its_shards_and_offers_no_orders(
    browser: Browser, inline_process: RunningServer
) -> None:
    with tab(browser, inline_process.url) as made:
        page = made.open("cluster")
        dialog = page.get_by_role("dialog")
        hint = dialog.locator("#token-hint").inner_text()
        command, path = hint.split()[-2:]
        assert command == "cat"
        with open(path, encoding="utf8") as file:
            give_keys(page, "", file.read())
        expect(page.locator("#shards tbody tr")).to_have_count(3)
        expect(page.locator(".tile", has_text="Coverage")).to_contain_text("complete")
        assert page.get_by_role("button", name="Kill").count() == 0
        page.get_by_role("button", name="Start a stream").click()
        expect(page.locator(".stream-state")).to_contain_text("tokens")
        assert [each for each in made.problems if "403" not in each] == []
