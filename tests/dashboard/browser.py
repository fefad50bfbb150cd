"""A real browser: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, Request, sync_playwright

from tests.daemon.process import Bockd, program
from tests.dashboard.visitor import link_of

WAIT_MS = 60_000
"""Nothing takes this long, unless the machine is busy with other tests."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """One for all tests of a module."""
    # As root it has no sandbox; it sees our own pages only.
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program("chromium"), args=flags)
        try:
            yield browser
        finally:
            browser.close()


class Screen:
    """A page of an operator's who has entered. At the end it must have asked nobody else, and its
    scripts must not have failed."""

    def __init__(self, page: Page, url: str) -> None:
        parts = urlsplit(url)
        self.page = page
        self.origin = f"{parts.scheme}://{parts.netloc}"
        self.complaints: list[str] = []
        page.set_default_timeout(WAIT_MS)
        page.on("request", self._requested)
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        page.on("console", lambda message: self.complaints.append(f"console: {message.text}"))
        page.goto(url)
        page.get_by_role("heading", name="Volumes").wait_for()

    def _requested(self, request: Request) -> None:
        if not request.url.startswith(f"{self.origin}/"):
            self.complaints.append(f"request: {request.url}")

    def at(self, path: str) -> Page:
        """Go to a page of the dashboard's, as "#/pool"."""
        self.page.goto(f"{self.origin}/{path}")
        return self.page


@contextmanager
def operating(
    browser: Browser, daemon: Bockd, *, width: int = 1200, dark: bool = False
) -> Iterator[Screen]:
    """A browser's window of its own."""
    context = browser.new_context(
        viewport={"width": width, "height": 800},
        color_scheme="dark" if dark else "light",
        reduced_motion="reduce",
    )
    try:
        screen = Screen(context.new_page(), link_of(daemon))
        yield screen
        assert screen.complaints == []
    finally:
        context.close()
