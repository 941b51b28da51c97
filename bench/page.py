"""How fast the web page is in a real Chromium: its first paint, a thousand instances, the terminal."""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, Page
from playwright.sync_api import Error as BrowserError
from tests.support import images
from tests.support.chromium import CHROMIUM, build_page, chromium

from bench import wire
from bench.daemons import UTSUWA, Daemon
from bench.ground import run_on_ground
from bench.wire import Wire

POOL = "overlay"
ORIGINAL, RUNNING = "original", "terminal"
FILTER = "copy-05"
PATIENCE = 60
"""Seconds until something must be seen."""
OUTPUT = 10_000_000
"""Bytes that a terminal shows at once."""

HEADING = """
new MutationObserver((_, observer) => {
    if (!document.querySelector("h1")) return
    window.headed = performance.now()
    observer.disconnect()
}).observe(document, {subtree: true, childList: true})
"""
"""Watch when the page has a heading."""

ECHO = """
window.echoes = []
document.addEventListener("keydown", (event) => {
    const began = performance.now()
    new MutationObserver((_, observer) => {
        window.echoes.push(performance.now() - began)
        observer.disconnect()
    }).observe(document.querySelector(".xterm-rows"), {childList: true, subtree: true, characterData: true})
}, true)
"""
"""Watch the time from a key to the change of the screen."""


@dataclass(frozen=True)
class Row:
    """One line of the report; `most` is what it may be at most, in its unit."""

    what: str
    value: float
    unit: str
    most: float

    def __str__(self) -> str:
        return f"| {self.what} | {self.value:.3g} {self.unit} | {self.most:g} {self.unit} |"


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0 where all is as fast as it is to be."""
    parser = argparse.ArgumentParser(prog="bench/page-test", description=__doc__)
    parser.add_argument("--instances", type=int, default=1000, metavar="N", help="in the list (1000)")
    parser.add_argument("--keys", type=int, default=100, metavar="N", help="typed into the terminal (100)")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="first paints (7)")
    options = parser.parse_args(sys.argv[1:] if argv is None else argv)
    if min(options.instances, options.keys, options.rounds) < 1:
        parser.error("the numbers must be at least 1")
    return run_on_ground("bench/page-test", lambda folder: _run_on(folder, options), BrowserError)


def _run_on(folder: Path, options: argparse.Namespace) -> int:
    build_page()
    daemon = Daemon(UTSUWA, folder)
    try:
        with tempfile.TemporaryDirectory(prefix="ub-") as scratch:
            daemon.start()
            daemon.import_image(images.build_busybox(Path(scratch)), "busybox")
        asked = Wire(daemon.socket)
        wire.create(asked, RUNNING, "busybox", POOL)
        wire.set_state(asked, RUNNING, "start")
        with chromium(_chromium_in(daemon)) as browser, _signed_in(browser, asked) as context:
            rows = _shown(_rows(context, asked, options))
    finally:
        for problem in daemon.close():
            print(f"bench/page-test: left behind: {problem}", file=sys.stderr)
    return 0 if all(row.value <= row.most for row in rows) else 1


def _shown(rows: Iterator[Row]) -> list[Row]:
    """Print each row as soon as it is measured, and return them."""
    print("| what | measured | at most |\n|---|---|---|")
    found = []
    for row in rows:
        print(row, flush=True)
        found.append(row)
    return found


def _chromium_in(daemon: Daemon) -> str:
    """A program that runs the browser where the daemon's loopback address is."""
    script = daemon.home / "chromium"
    script.write_text(f'#!/bin/sh\nexec {shlex.join(daemon.box.prefix)} {CHROMIUM} "$@"\n')
    script.chmod(0o755)
    return str(script)


@contextmanager
def _signed_in(browser: Browser, asked: Wire) -> Iterator[BrowserContext]:
    url = asked.ask("POST", "/1.0/web/tokens", {"local": True})["metadata"]["url"]
    origin = "{0.scheme}://{0.netloc}".format(urlsplit(url))
    context = browser.new_context(base_url=origin, viewport={"width": 1280, "height": 800}, locale="en-US")
    page = context.new_page()
    page.goto(url)
    page.get_by_role("heading", name="Instances").wait_for()
    page.close()
    yield context
    context.close()


def _rows(context: BrowserContext, asked: Wire, options: argparse.Namespace) -> Iterator[Row]:
    paints = [_first_paint(context) for _ in range(options.rounds)]
    yield Row("first paint: the page's frame (median)", statistics.median(p for p, _ in paints), "ms", 300)
    yield Row("navigation and heading (median)", statistics.median(h for _, h in paints), "ms", 500)
    yield Row("the page with its terminal on the wire", _size(context) / 1000, "kB", 250)
    keys, burst, interrupted = _terminal(context, options.keys)
    yield Row("echo of a key on the screen (median)", statistics.median(keys), "ms", 15)
    yield Row(f"{OUTPUT // 1_000_000} MB of output: longest task of the page", burst, "ms", 100)
    yield Row("endless output: from Ctrl-C to the prompt", interrupted, "ms", 1000)
    _fill(asked, options.instances - 2)
    for what, longest in _list(context, options.instances).items():
        yield Row(f"{options.instances} instances: longest task while {what}", longest, "ms", 50)


def _fill(asked: Wire, count: int) -> None:
    """Copy a stopped instance."""
    wire.create(asked, ORIGINAL, "busybox", POOL)
    for number in range(count):
        source = {"type": "copy", "source": ORIGINAL}
        asked.do("POST", "/1.0/instances", {"name": _copy(number), "source": source})


def _copy(number: int) -> str:
    return f"copy-{number:04}"


@contextmanager
def _page(context: BrowserContext, path: str = "/ui/") -> Iterator[Page]:
    page = context.new_page()
    page.goto(path)
    yield page
    page.close()


def _first_paint(context: BrowserContext) -> tuple[float, float]:
    """Milliseconds until something is seen, and until the view has its heading, with an empty cache."""
    page = context.new_page()
    page.add_init_script(HEADING)
    session = context.new_cdp_session(page)
    session.send("Network.enable")
    session.send("Network.setCacheDisabled", {"cacheDisabled": True})
    page.goto("/ui/")
    page.get_by_role("heading", name="Instances").wait_for()
    paint = "performance.getEntriesByName('first-contentful-paint')"
    _until(page, f"{paint}.length > 0")
    found = page.evaluate(f"[{paint}[0].startTime, window.headed]")
    page.close()
    return float(found[0]), float(found[1])


def _until(page: Page, condition: str) -> None:
    """Wait until an expression is true; `wait_for_function` needs what the page's policy forbids."""
    deadline = time.monotonic() + PATIENCE
    while not page.evaluate(condition):
        if time.monotonic() > deadline:
            raise BrowserError(f"{condition} has not become true within {PATIENCE} seconds")
        time.sleep(0.005)


def _size(context: BrowserContext) -> int:
    """Bytes of all that the page fetches of its own, up to a terminal."""
    page = context.new_page()
    session = context.new_cdp_session(page)
    own: set[str] = set()
    sizes: list[int] = []

    def received(event: dict[str, Any]) -> None:
        if urlsplit(event["response"]["url"]).path.startswith("/ui/"):
            own.add(event["requestId"])

    def finished(event: dict[str, Any]) -> None:
        if event["requestId"] in own:
            sizes.append(int(event["encodedDataLength"]))

    session.on("Network.responseReceived", received)
    session.on("Network.loadingFinished", finished)
    session.send("Network.enable")
    session.send("Network.setCacheDisabled", {"cacheDisabled": True})
    page.goto(f"/ui/default/instances/{RUNNING}/terminal")
    page.get_by_text("Shell of root").wait_for()
    page.wait_for_load_state("networkidle")
    page.close()
    return sum(sizes)


def _terminal(context: BrowserContext, keys: int) -> tuple[list[float], float, float]:
    """Milliseconds of the echoes, of the longest task during much output, and until Ctrl-C works."""
    with _page(context, f"/ui/default/instances/{RUNNING}/terminal") as page:
        page.get_by_text("Shell of root").wait_for()
        page.locator(".xterm-helper-textarea").focus()

        def see(text: str) -> None:
            _until(page, f"document.querySelector('.xterm-rows').innerText.includes({json.dumps(text)})")

        def type_line(text: str) -> None:
            page.keyboard.type(f"{text}\n")

        type_line("echo ready-$((1 + 1))")
        see("ready-2")
        page.evaluate(ECHO)
        for _ in range(keys):
            page.keyboard.press("x")
            page.wait_for_timeout(60)
        echoes = [float(found) for found in page.evaluate("window.echoes")]
        page.keyboard.press("Control+c")

        def say_much() -> None:
            type_line(f"yes 0123456789 | head -c {OUTPUT}; echo all-$((1 + 1))")
            see("all-2")

        longest = _longest_task(page, say_much)
        type_line("yes")
        see("y\ny\ny")
        page.wait_for_timeout(1000)
        began = time.monotonic()
        page.keyboard.press("Control+c")
        type_line("echo back-$((1 + 1))")
        see("back-2")
        interrupted = (time.monotonic() - began) * 1000
        page.get_by_role("button", name="End shell").click()
        return echoes, longest, interrupted


def _longest_task(page: Page, work: Callable[[], object]) -> float:
    """Milliseconds of processor time of the page's longest task while `work` is done, which delays a frame.

    Processor time, as on a busy machine a frame waits for other programs, too.
    """
    browser = page.context.browser
    assert browser is not None
    browser.start_tracing(page=page, categories=["disabled-by-default-devtools.timeline"])
    work()
    events = json.loads(browser.stop_tracing())["traceEvents"]
    pages = {
        (event["pid"], event["tid"])
        for event in events
        if event["name"] == "thread_name" and event["args"]["name"] == "CrRendererMain"
    }
    tasks = (e for e in events if e["name"] == "RunTask" and (e["pid"], e["tid"]) in pages)
    return max(float(task.get("tdur", 0)) / 1000 for task in tasks)


def _list(context: BrowserContext, count: int) -> dict[str, float]:
    with _page(context) as page:
        main = page.get_by_role("main")
        search = page.get_by_role("searchbox")
        table = page.get_by_label("Instances", exact=True)

        def listed() -> None:
            main.get_by_text(f"{count:,}", exact=True).wait_for()

        def filtered() -> None:
            search.type(FILTER)
            shown = sum(_copy(number).startswith(FILTER) for number in range(count - 2))
            main.get_by_text(f"{shown:,} of {count:,}", exact=True).wait_for()
            for _ in FILTER:
                search.press("Backspace")
            listed()

        def scrolled() -> None:
            for _ in range(40):
                table.evaluate("box => box.scrollBy(0, 900)")
                page.wait_for_timeout(20)

        def sort() -> None:
            page.get_by_role("button", name="Status").click()
            page.get_by_role("button", name="Name").click()

        def read() -> None:
            page.reload()
            listed()

        found = {"it is read and shown": _longest_task(page, read)}
        page.wait_for_timeout(500)
        found["it is filtered"] = _longest_task(page, filtered)
        found["it is scrolled"] = _longest_task(page, scrolled)
        found["it is sorted"] = _longest_task(page, sort)
        return found


if __name__ == "__main__":
    sys.exit(main())
