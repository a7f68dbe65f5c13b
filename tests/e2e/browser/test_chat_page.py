"""The chat in a real browser: what a reader does, and what becomes of what a model says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import Download, Page, Route, expect

from cluster.errors import OverloadedError
from tests.e2e.conftest import ScriptedServer, eventually
from tests.support.browser import Tab

HOSTILE = (
    "# Title\n\n<img src=x onerror=alert(1)> <script>alert(2)</script>\n\n"
    "[bad](javascript:alert(3)) [good](https://example.org/a) ![pic](https://example.org/b.png)\n\n"
    "- one\n  - two\n- **three** and `four`\n\n"
    "| a | b |\n|---|---|\n| 1 | 2 |\n\n```html\n<b>code</b>\n```\n"
)


def answered_by(page: Page, *deltas: dict[str, object], finish: str = "stop") -> None:
    """Let the page's next questions be answered by these deltas, as the server would send them."""
    choices: list[dict[str, object]] = [
        {"index": 0, "delta": delta, "finish_reason": None} for delta in deltas
    ]
    choices.append({"index": 0, "delta": {}, "finish_reason": finish})
    usage = {"prompt_tokens": 3, "completion_tokens": len(deltas), "total_tokens": 3 + len(deltas)}
    events = [
        f"data: {json.dumps({'choices': [choice], 'usage': usage})}\n\n" for choice in choices
    ]
    body = "".join([*events, "data: [DONE]\n\n"])

    def answer(route: Route) -> None:
        route.fulfill(status=200, content_type="text/event-stream", body=body)

    page.route("**/v1/chat/completions", answer)


def saved(download: Download, folder: Path) -> str:
    path = folder / download.suggested_filename
    download.save_as(path)
    return path.read_text(encoding="utf8")


def test_an_answer_of_the_real_engine_appears_with_its_times(inline: Tab) -> None:
    page = inline.open()
    assert inline.ask("Say hello.")
    note = page.locator(".message.assistant .note")
    expect(note).to_contain_text("token")
    expect(note).to_contain_text("first after")
    expect(page.locator("#ready")).to_have_text("ready")
    expect(page.locator("#model")).to_have_text("tiny")


def test_an_answer_is_made_again(inline: Tab) -> None:
    page = inline.open()
    inline.ask("Say hello.")
    page.get_by_role("button", name="Regenerate").click()
    page.get_by_role("button", name="Regenerate").wait_for()
    assert page.locator(".message").count() == 2


def test_a_stopped_answer_is_kept_and_its_request_is_cancelled(
    scripted: Tab, scripted_server: ScriptedServer
) -> None:
    scripted_server.engine.stall_after = 5
    page = scripted.open()
    answer = scripted.send("one two three")
    expect(answer.locator(".text")).not_to_be_empty()
    page.get_by_role("button", name="Stop").click()
    expect(answer.locator(".note")).to_contain_text("Stopped.")
    assert answer.locator(".text").inner_text()
    assert eventually(lambda: not scripted_server.engine.open, 10.0)


def test_the_keyboard_sends_and_stops(scripted: Tab, scripted_server: ScriptedServer) -> None:
    scripted_server.engine.stall_after = 5
    page = scripted.open()
    field = page.get_by_label("Message", exact=True)
    expect(field).to_be_focused()
    page.keyboard.type("first line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("second line")
    page.keyboard.press("Enter")
    expect(page.locator(".message.user .text")).to_have_text("first line\nsecond line")
    expect(page.locator(".message.assistant .text")).not_to_be_empty()
    page.keyboard.press("Escape")
    expect(page.locator(".message.assistant .note")).to_contain_text("Stopped.")


def test_what_is_set_is_what_is_asked_for(scripted: Tab, scripted_server: ScriptedServer) -> None:
    page = scripted.open()
    scripted.ask("with what is given")
    first = scripted_server.engine.requests[-1].params
    assert (first.temperature, first.top_p) == (0.8, 0.8)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Longest answer").fill("7")
    page.get_by_label("Seed").fill("42")
    scripted.ask("with what is set")
    request = scripted_server.engine.requests[-1]
    assert (request.params.temperature, request.params.max_tokens) == (0.0, 7)
    assert request.params.seed == 42
    text = scripted_server.service.tokenizer.decode(
        list(request.prompt_ids), skip_special_tokens=False
    )
    assert "Be brief." in text


def test_conversations_survive_a_reload_and_are_deleted_on_demand(scripted: Tab) -> None:
    page = scripted.open()
    answer = scripted.ask("the first talk")
    page.get_by_role("button", name="New conversation").click()
    scripted.ask("the second talk")
    page.reload()
    expect(page.locator("#chat-title")).to_have_text("the second talk")
    page.get_by_role("button", name="the first talk").click()
    expect(page.locator(".message.assistant .text")).to_have_text(answer, use_inner_text=True)
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("button", name="the first talk")).to_have_count(0)
    expect(page.locator("#chat-title")).to_have_text("the second talk")


def test_a_conversation_is_exported_in_both_forms(scripted: Tab, tmp_path: Path) -> None:
    page = scripted.open()
    answer = scripted.ask("export me")
    with page.expect_download() as as_json:
        page.get_by_role("button", name="Export JSON").click()
    kept = json.loads(saved(as_json.value, tmp_path))
    assert [message["role"] for message in kept["messages"]] == ["user", "assistant"]
    assert kept["messages"][1]["stats"]["tokens"] > 0
    with page.expect_download() as as_markdown:
        page.get_by_role("button", name="Export Markdown").click()
    assert as_markdown.value.suggested_filename == "export-me.md"
    text = saved(as_markdown.value, tmp_path)
    assert text.startswith("# export me\n\n## You\n\nexport me\n\n## Model\n\n")
    assert answer.split()[0] in text


def test_markup_of_a_model_is_text_and_markdown_is_shown(scripted: Tab) -> None:
    page = scripted.open()
    answered_by(page, {"content": HOSTILE[:40]}, {"content": HOSTILE[40:]})
    scripted.ask("anything")
    text = page.locator(".message.assistant .text")
    assert text.locator("img, script, b").count() == 0
    assert "<img src=x onerror=alert(1)>" in text.inner_text()
    links = text.locator("a").evaluate_all("links => links.map((link) => link.href)")
    assert links == ["https://example.org/a", "https://example.org/b.png"]
    assert text.locator("ul ul li").inner_text() == "two"
    assert text.locator("strong").inner_text() == "three"
    assert text.locator("td").all_inner_texts() == ["1", "2"]
    assert text.locator("pre code").inner_text() == "<b>code</b>"


def test_reasoning_is_folded_and_calls_are_shown_and_answered(scripted: Tab) -> None:
    page = scripted.open()
    call = {"index": 0, "id": "call-1", "function": {"name": "weather", "arguments": '{"town":'}}
    rest = {"index": 0, "function": {"arguments": '"Bern"}'}}
    answered_by(
        page,
        {"reasoning": "The reader wants"},
        {"reasoning": " weather."},
        {"tool_calls": [call]},
        {"tool_calls": [rest]},
        finish="tool_calls",
    )
    scripted.ask("How is the weather?")
    thought = page.locator(".message.assistant .thought")
    expect(thought).to_be_hidden()
    page.get_by_text("Reasoning, 4 words").click()
    expect(thought).to_have_text("The reader wants weather.")
    expect(page.locator(".call pre")).to_have_text('{\n  "town": "Bern"\n}')
    answered_by(page, {"content": "It rains."})
    page.get_by_label("Result of the call").fill("rain")
    with page.expect_request("**/v1/chat/completions") as asked:
        page.get_by_role("button", name="Send result").click()
    messages = json.loads(asked.value.post_data or "")["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool"]
    assert messages[2] == {"role": "tool", "content": "rain", "tool_call_id": "call-1"}
    expect(page.locator(".message.assistant .text").last).to_have_text("It rains.")


def test_a_refusal_is_told_in_the_servers_words(
    scripted: Tab, scripted_server: ScriptedServer
) -> None:
    scripted_server.engine.refusal = OverloadedError("the queue", 3, 3)
    scripted.open()
    answer = scripted.send("one more")
    expect(answer.locator(".note.bad")).to_contain_text("queue")
    # The browser itself tells of a status of 400 and above.
    assert [problem for problem in scripted.problems if "429" not in problem] == []
    scripted.problems.clear()


@pytest.mark.parametrize("view", ["chat", "cluster"])
def test_nothing_is_cut_off_on_a_small_screen(inline: Tab, view: str) -> None:
    inline.page.set_viewport_size({"width": 360, "height": 640})
    page = inline.open(view)
    page.locator(f"#{view}").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    inline.problems.clear()  # the cluster's 403 without the token
