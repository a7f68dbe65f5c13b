"""A real Chromium for tests of the page, and what went wrong in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Locator, Page, Request, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
# As root and without a network beyond this machine.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
TIMEOUT_MS = 15_000


def find_chromium() -> str | None:
    """Return the path of the machine's Chromium, if it has one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def chromium(path: str) -> Iterator[Browser]:
    """Run the browser while the block runs; its profile is new and is removed."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS, headless=True)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Tab:
    """One tab with the page of one server."""

    page: Page
    url: str
    problems: list[str] = field(default_factory=list)
    """Errors that scripts raised or that the browser told of."""
    foreign: list[str] = field(default_factory=list)
    """Addresses elsewhere that were asked for."""

    def __post_init__(self) -> None:
        self.page.set_default_timeout(TIMEOUT_MS)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on(
            "console",
            lambda message: self.problems.append(message.text) if message.type == "error" else None,
        )
        self.page.on("request", self._note_request)

    def _note_request(self, request: Request) -> None:
        address = urlsplit(request.url)
        if address.scheme in ("http", "https") and address.netloc != urlsplit(self.url).netloc:
            self.foreign.append(request.url)

    def open(self, view: str = "chat") -> Page:
        """Load the page and show a view."""
        self.page.goto(f"{self.url}/#/{view}")
        return self.page

    def send(self, text: str) -> Locator:
        """Send a message; return the newest answer's element."""
        self.page.get_by_label("Message", exact=True).fill(text)
        self.page.get_by_role("button", name="Send", exact=True).click()
        return self.page.locator(".message.assistant").last

    def ask(self, text: str) -> str:
        """Send a message; return the answer once it has ended."""
        answer = self.send(text)
        answer.get_by_role("button", name="Regenerate").wait_for()
        return answer.locator(".text").inner_text()


@contextmanager
def tab(browser: Browser, url: str, **options: object) -> Iterator[Tab]:
    """Open a tab with storage of its own; `options` are Playwright's of a context."""
    context = browser.new_context(**options)  # type: ignore[arg-type]
    try:
        yield Tab(context.new_page(), url)
    finally:
        context.close()
