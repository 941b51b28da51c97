"""The public site in a real browser: the tour on real containers, and what visitors are told."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.conftest import SHARED
from tests.support import images, workers
from tests.support.chromium import (
    WEB,
    Complaints,
    build_page,
    chromium,
    load_rules,
    new_context,
    violations,
)
from tests.support.daemon import Daemon
from tests.support.images import Image
from tests.support.long import LONG
from tests.support.netbox import until
from tests.support.relay import relay
from tests.support.try_site import Site, asking, prepared, running

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

PAGE = WEB.parent / "src/utsuwa/page"
COMMAND_SECONDS = 120
"""For a command of the tour, or a container, on a busy machine."""
FIRST_PAINT = 40_000
BUDGET = 150_000
"""Bytes on the wire, compressed: until the start view is seen, and with the terminal and the tour."""
PROMPT = re.compile(r"[#$] ?$")
FULL = "All places are taken"
ELSEWHERE = {"X-Forwarded-For": "192.0.2.7"}
"""What the proxy before the site says of another visitor."""


@pytest.fixture(scope="module")
def browser(pytestconfig: pytest.Config) -> Iterator[Browser]:
    workers.once(pytestconfig.stash[SHARED], "page", lambda _: build_page("--check"))
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def site(browser: Browser, module_daemon: Daemon, busybox_image: Image) -> Iterator[Site]:
    """A site for one visitor at a time."""
    folder = prepared(
        module_daemon,
        busybox_image,
        images.docker_of_visitors() if LONG else None,
        sessions=1,
        sessions_per_address=1,
        starts_per_hour=100,
        ready=1,
        proxies=["127.0.0.1"],
    )
    with running(module_daemon, folder) as site:
        yield site


@contextmanager
def opened(browser: Browser, address: str, **options: Any) -> Iterator[Page]:
    """Open the site in a browser of its own, which must not complain, and end the session after that."""
    origin = f"http://{address}"
    context = new_context(browser, origin, **options)
    page = context.new_page()
    complaints = Complaints()
    complaints.listen_to(page)
    try:
        page.goto("/")
        page.get_by_role("heading", level=1).wait_for()
        yield page
    finally:
        context.request.delete("/api/session", headers={"Origin": origin})
        context.close()
    assert complaints == []


def begin(page: Page) -> None:
    """Begin a session, in any language."""
    page.get_by_role("checkbox").check()
    page.locator("button[type=submit]").click()
    page.locator(".typed").first.wait_for(timeout=COMMAND_SECONDS * 1000)
    wait_for_prompt(page)


def shown(page: Page) -> list[str]:
    """Return the lines in the terminal that are not empty."""
    text = page.locator(".xterm-rows").inner_text().replace("\N{NO-BREAK SPACE}", " ")
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def wait_for_prompt(page: Page, after: str = "") -> None:
    """Wait until the shell waits for a command, after it has run one."""

    def prompted() -> bool:
        lines = shown(page)
        return bool(lines) and PROMPT.search(lines[-1]) is not None and any(after in line for line in lines)

    until(prompted, COMMAND_SECONDS)


def enter(page: Page, command: str) -> None:
    page.locator(".xterm-helper-textarea").focus()
    page.keyboard.type(f"{command}\n")
    wait_for_prompt(page, command)


def do_step(page: Page) -> None:
    """Click on all commands of the step that is shown, one after the other."""
    page.locator(".xterm-helper-textarea").focus()
    page.keyboard.type("clear\n")
    until(lambda: len(shown(page)) == 1, COMMAND_SECONDS)
    for command in page.locator(".typed").all():
        command.click()
        wait_for_prompt(page, command.locator("code").inner_text())
    assert not [line for line in shown(page) if line.startswith("Error")]
    expect(page.locator(".result .done")).to_be_visible(timeout=COMMAND_SECONDS * 1000)


@pytest.mark.parametrize("locale", ["en-US", pytest.param("ja-JP", marks=pytest.mark.long)])
def test_the_tour_from_first_to_last_step(browser: Browser, site: Site, locale: str) -> None:
    with opened(browser, site.address, locale=locale) as page:
        closed = "closed for 5 minutes" if locale == "en-US" else "閉じたまま 5 分"
        expect(page.locator(".points")).to_contain_text(closed)
        begin(page)
        assert page.locator("html").get_attribute("lang") == locale[:2]
        titles = []
        steps = page.locator(".steps button")
        doable = steps.count() if LONG else steps.count() - 1  # Docker's image takes long to make
        for number in range(steps.count()):
            expect(steps.nth(number)).to_have_attribute("aria-current", "step")
            titles.append(page.get_by_role("heading", level=1).inner_text())
            if number < doable:
                do_step(page)
            page.locator(".tour footer button").last.click()
        assert len(set(titles)) == steps.count() > 8
        assert all(re.search("[ぁ-ん]", title) for title in titles) == (locale == "ja-JP")
        expect(page.locator(".steps .done")).to_have_count(doable)

        page.locator(".stars label").nth(3).click()
        page.locator(".tour textarea").fill("結構 <b>good</b>")
        page.locator(".tour form button").click()
        expect(page.locator(".tour form")).to_have_count(0)
        page.locator(".session .top button").click()
        page.get_by_role("dialog").locator("button[type=submit]").click()
        expect(page.locator(".session")).to_have_count(0)
        expect(page.locator(".sheet form")).to_have_count(0)
    said = [json.loads(line) for line in (site.folder / "data/feedback.jsonl").read_text().splitlines()]
    assert (said[-1]["stars"], said[-1]["text"]) == (4, "結構 <b>good</b>")
    assert said[-1]["language"] == locale[:2]


def test_what_is_missing_is_said(browser: Browser, site: Site) -> None:
    with opened(browser, site.address) as page:
        begin(page)
        page.get_by_role("button", name="Check").click()
        expect(page.locator(".hint")).to_contain_text("There is no container yet")
        page.get_by_role("button", name="Take a snapshot").click()
        expect(page.get_by_role("heading", name="Take a snapshot")).to_be_focused()
        enter(page, "utsuwa init busybox mine")
        expect(page.locator(".hint")).to_contain_text("There is no snapshot yet")
        page.get_by_role("button", name="Launch your first container").click()
        page.get_by_role("button", name="Check").click()
        expect(page.locator(".hint")).to_contain_text("mine is not running")


def test_the_keyboard_is_enough(browser: Browser, site: Site) -> None:
    with opened(browser, site.address) as page:
        begin(page)
        expect(page.locator(".xterm-helper-textarea")).to_be_focused()
        page.keyboard.press("F6")
        expect(page.get_by_role("region", name="Guided tour")).to_be_focused()
        page.keyboard.press("F6")
        expect(page.locator(".xterm-helper-textarea")).to_be_focused()
        page.keyboard.press("F6")
        until(lambda: _tab(page))
        page.keyboard.press("Enter")
        wait_for_prompt(page, "utsuwa list")
        expect(page.locator(".xterm-helper-textarea")).to_be_focused()


def _tab(page: Page) -> bool:
    """Go to the next element; return whether it is the command."""
    page.keyboard.press("Tab")
    return bool(page.evaluate("document.activeElement.matches('.typed:nth-child(2)')"))


def test_a_lost_connection_is_made_again(browser: Browser, site: Site) -> None:
    """With the shell that was there before, and what it has said."""
    with relay(site.address) as network, opened(browser, network.address) as page:
        begin(page)
        enter(page, "kept=$((6 * 7))")
        network.cut()
        expect(page.get_by_text("Connection lost")).to_be_visible()
        network.up = True
        expect(page.get_by_text("A root shell on your machine")).to_be_visible()
        enter(page, "echo it-was-$kept")
        assert "it-was-42" in shown(page)
        page.reload()
        expect(page.get_by_text("A root shell on your machine")).to_be_visible()
        until(lambda: "it-was-42" in shown(page))


def test_two_windows_do_not_fight_for_the_terminal(browser: Browser, site: Site) -> None:
    with opened(browser, site.address) as page:
        begin(page)
        other = page.context.new_page()
        other.goto("/")
        expect(page.get_by_text("shown in another window")).to_be_visible()
        page.get_by_role("button", name="Continue here").click()
        expect(other.get_by_text("shown in another window")).to_be_visible()
        enter(page, "echo here")
        other.close()


def test_whoever_finds_no_place_is_told(browser: Browser, site: Site) -> None:
    with opened(browser, site.address) as page:
        expect(page.get_by_role("status")).to_have_text("1 of 1 places free")
        begin(page)
        for headers, told in (({}, "sessions from your network address"), (ELSEWHERE, FULL)):
            with opened(browser, site.address, extra_http_headers=headers) as other:
                expect(other.get_by_role("status")).to_contain_text(FULL)
                other.get_by_role("checkbox").check()
                other.get_by_role("button", name="Start").click()
                expect(other.get_by_role("alert")).to_contain_text(told)
                expect(other.get_by_role("button", name="Start")).to_be_enabled()


def test_whoever_comes_to_docker_while_others_do_waits_in_a_queue(browser: Browser, site: Site) -> None:
    site.stop()
    site.start(sessions=2, docker_at_once=1)
    other = site.visitor()
    try:
        assert other.begin(**ELSEWHERE).status == 201
        with opened(browser, site.address) as page:
            begin(page)
            step = page.get_by_role("button", name="Run Docker inside")
            assert other.ask_turn()["state"] == "turn"
            with asking(other):
                step.click()
                expect(page.get_by_text("Your place in the queue: 1")).to_be_visible()
                for command in page.locator(".typed").all():
                    expect(command).to_be_disabled()
                load_rules(page)
                assert violations(page) == []
                page.reload()
                step.click()
                expect(page.get_by_text("Your place in the queue: 1")).to_be_visible()
            other.send("DELETE", "/api/session/turn")
            # What changes each minute is not announced each time.
            told = page.get_by_role("status").filter(has_text="It is your turn")
            expect(told).to_be_visible()
            expect(told).not_to_contain_text("min")
            expect(page.get_by_text("min more")).to_be_visible()
            expect(page.locator(".typed").first).to_be_enabled()
            assert other.ask_turn() == {"state": "waiting", "ahead": 0, "most": 1}
            page.get_by_role("button", name="Back").click()
            until(lambda: other.ask_turn()["state"] == "turn")

            page.route("**/api/session/turn", lambda route: route.abort("connectionrefused"))
            step.click()
            expect(page.get_by_text("Please check your connection")).to_be_visible()
            expect(page.locator(".typed").first).to_be_disabled()
            page.unroute_all()
            page.route("**/api/session/turn", lambda route: route.fulfill(json={"state": "done"}))
            expect(page.locator(".typed").first).to_be_enabled()
            page.unroute_all()
    finally:
        other.send("DELETE", "/api/session")
        site.stop()
        site.start(sessions=1, docker_at_once=5)


def test_an_ended_session_is_told(browser: Browser, site: Site) -> None:
    """Ended by the site, as at the end of its time: here its container is deleted."""
    with opened(browser, site.address) as page:
        begin(page)
        name = page.evaluate("fetch('/api/session').then((reply) => reply.json())")["container"]
        site.daemon.do("PUT", f"/1.0/instances/{name}/state?project=try", {"action": "stop", "force": True})
        expect(page.get_by_role("heading", name="Your session has ended")).to_be_focused()
        page.get_by_role("button", name="Start again").click()
        expect(page.get_by_role("heading", name="Try Utsuwa")).to_be_visible()


def test_the_end_is_announced(browser: Browser, site: Site) -> None:
    """The page is told that there is less time than the site gives, which has the last word."""
    with opened(browser, site.address) as page:
        begin(page)
        for seconds, said in (
            (299, "Five minutes are left"),
            (59, "The last minute"),
            (1, "The last minute"),
        ):
            page.unroute_all()
            page.route("**/api/session", _shortened(seconds))
            page.reload()
            expect(page.get_by_text(said)).to_be_visible()
        expect(page.get_by_role("timer")).to_contain_text("0:00")
        page.context.request.delete("/api/session", headers={"Origin": f"http://{site.address}"})
        expect(page.get_by_role("heading", name="Your 30 minutes are over")).to_be_focused()


def _shortened(seconds: int) -> Callable[[Route], None]:
    """Return what answers as the site does, with another end of the session."""

    def answer(route: Route) -> None:
        reply = route.fetch()
        end = datetime.now(UTC) + timedelta(seconds=seconds)
        route.fulfill(response=reply, json=reply.json() | {"expires_at": end.isoformat()})

    return answer


def test_every_view_is_accessible(browser: Browser, site: Site) -> None:
    """By the rules of axe-core, in both themes."""
    with opened(browser, site.address) as page:
        load_rules(page)
        problems = violations(page)
        begin(page)
        for theme in ("dark", "light"):
            page.emulate_media(color_scheme=theme)
            problems += violations(page)
        page.get_by_role("button", name="Check").click()
        expect(page.locator(".hint")).to_be_visible()
        page.get_by_role("button", name="End", exact=True).click()
        problems += violations(page)
        page.keyboard.press("Escape")
        for _ in range(page.locator(".steps button").count()):
            page.locator(".tour footer button").last.click()
        expect(page.get_by_role("heading", name="That was the tour")).to_be_focused()
        page.get_by_role("radio", name="Very good").press("Space")
        problems += violations(page)
        page.get_by_role("button", name="End", exact=True).click()
        page.get_by_role("dialog").get_by_role("button", name="End the session").click()
        expect(page.get_by_role("heading", name="You have ended the session")).to_be_focused()
        problems += violations(page)
    assert problems == []


def test_the_start_view_speaks_japanese(browser: Browser, site: Site) -> None:
    with opened(browser, site.address, locale="ja-JP") as page:
        expect(page.get_by_role("heading", name="Utsuwa を試す")).to_be_visible()
        expect(page.get_by_role("status")).to_have_text("1 席中 1 席が空いています")
        expect(page.get_by_role("button", name="始める")).to_be_disabled()
        page.get_by_label("言語").select_option("en")
        expect(page.get_by_role("heading", name="Try Utsuwa")).to_be_visible()
        assert page.locator("html").get_attribute("lang") == "en"


def test_a_small_screen_has_one_above_the_other(browser: Browser, site: Site) -> None:
    with opened(browser, site.address, viewport={"width": 360, "height": 740}) as page:
        fits = "document.documentElement.scrollWidth <= innerWidth"
        assert page.evaluate(fits)
        begin(page)
        assert page.evaluate(fits)
        terminal = page.locator(".terminal-box").bounding_box()
        tour = page.locator(".tour").bounding_box()
        assert terminal is not None
        assert tour is not None
        assert terminal["y"] + terminal["height"] <= tour["y"]
        page.get_by_role("button", name="Next").click()
        expect(page.get_by_role("heading", name="Run commands in it")).to_be_in_viewport()


def test_the_size_on_the_wire(browser: Browser) -> None:
    """Of what the document and its scripts name, and of what they import later as well."""
    first = _fetched("try.html", r'(?:src|href)="/([^"]+)"|(?:from|import)"\./([^"]+)"')
    assert sum(first.values()) < FIRST_PAINT, first
    everything = _fetched("try.html", r'(?:src|href)="/([^"]+)"|(?:from|import)\(?"\./([^"]+)"')
    assert sum(everything.values()) < BUDGET, everything
    assert len(everything) > len(first)


def _fetched(document: str, names: str) -> dict[str, int]:
    """Return the compressed sizes of a document and all that it, and they, name."""
    found: dict[str, int] = {}
    waiting = [document]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        packed = (PAGE / f"{name}.gz").read_bytes()
        found[name] = len(packed)
        text = gzip.decompress(packed).decode()
        for top, beside in re.findall(names, text):
            waiting.append(top or f"assets/{beside}")
    return found
