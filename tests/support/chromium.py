"""A real, headless Chromium of Debian, and the web page that it shows, built from these sources."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Dialog,
    Page,
    expect,
    sync_playwright,
)

from tests.support import isolation

WEB = Path(__file__).resolve().parents[2] / "web"
CHROMIUM = "/usr/bin/chromium"
PATIENCE = 30_000
"""Milliseconds until something must be seen, on a busy machine."""
_EXPECTED = (
    "the server responded with a status of",
    "net::ERR_CONNECTION_REFUSED",
    "net::ERR_CONNECTION_RESET",
    "net::ERR_CONNECTION_CLOSED",
    "net::ERR_EMPTY_RESPONSE",
    "net::ERR_SOCKET_NOT_CONNECTED",
)
"""What the browser says of errors of the API, and of a server that is away."""
_VIOLATIONS = """async () => (await axe.run(document, {resultTypes: ['violations']})).violations
    .map((v) => `${v.id}: ${v.nodes.map((n) => n.html).join(' ')}`)"""


def build_page(*options: str) -> str:
    """Bring the page of this checkout up to date, on the machine's network; return what was said."""
    command = [*isolation.host_prefix(), sys.executable, str(WEB / "build_page.py"), *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    return ended.stdout


@contextmanager
def chromium(program: str = CHROMIUM) -> Iterator[Browser]:
    """A browser, which runs as root like the tests, so without its sandbox."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        yield browser
        browser.close()


class Complaints(list[str]):
    """What the browser says about a page: violations of the policy, errors, dialogs."""

    def listen_to(self, page: Page) -> None:
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.append(str(error)))
        page.on("dialog", self._dialog)

    def _dialog(self, dialog: Dialog) -> None:
        self.append(dialog.message)
        dialog.dismiss()

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not any(said in message.text for said in _EXPECTED):
            self.append(message.text)


def new_context(browser: Browser, origin: str, **more: Any) -> BrowserContext:
    usual = {"locale": "en-US", "viewport": {"width": 1280, "height": 800}}
    context = browser.new_context(base_url=origin, **(usual | more))
    context.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    return context


def load_rules(page: Page) -> None:
    """Load the rules of axe-core, which are gone when the page is loaded anew."""
    page.evaluate((WEB / "node_modules/axe-core/axe.min.js").read_text())


def violations(page: Page) -> list[str]:
    """Return how the page, as it is shown now, violates the rules of axe-core."""
    found: list[str] = page.evaluate(_VIOLATIONS)
    return [f"{page.url}: {one}" for one in found]
