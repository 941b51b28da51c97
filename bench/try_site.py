"""How long visitors of the public site wait, alone and one after the other, and how much memory they take."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path

from tests.support import images, isolation, try_site
from tests.support.daemon import Daemon
from tests.support.netbox import until
from tests.support.try_site import Site, Visitor

MIB = 1 << 20
READY = 3
PATIENCE = 120


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0 if nothing is left behind."""
    parser = argparse.ArgumentParser(prog="bench/try-test", description=__doc__)
    parser.add_argument("--visitors", type=int, default=20, metavar="N", help="at the same time (20)")
    parser.add_argument("--every", type=float, default=3, metavar="S", help="seconds between them (3)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="visitors that come alone (5)")
    options = parser.parse_args(sys.argv[1:] if argv is None else argv)
    if os.geteuid() != 0:
        print("bench/try-test: containers need root; run it as root", file=sys.stderr)
        return 1
    isolation.enter()
    daemon = Daemon()
    try:
        daemon.start()
        daemon.make_defaults()
        with tempfile.TemporaryDirectory(prefix="ub-") as scratch:
            busybox = images.build_busybox(Path(scratch))
            many = options.visitors
            folder = try_site.prepared(
                daemon, busybox, sessions=many, sessions_per_address=many, starts_per_hour=10_000
            )
        print("| operation | result |\n|---|---|")
        for row in _measure(Site(daemon, folder), options):
            print("| {} | {} |".format(*row), flush=True)
    finally:
        problems = daemon.close()
        for problem in problems:
            print(f"bench/try-test: left behind: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _measure(site: Site, options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    try:
        for ready in (READY, 0):
            site.start(ready=ready)
            alone = [_alone(site, ready) for _ in range(options.rounds)]
            site.stop()
            what = f"while {ready} stand ready" if ready else "while none stands ready"
            yield f"a visitor is served {what}", _seconds(alone)
        site.start(ready=READY)
        until(lambda: site.metric("containers_ready") == READY, PATIENCE)
        waits, memory = _crowd(site, options)
        yield f"{options.visitors} visitors, one each {options.every:g} s", _seconds(waits)
        yield "memory of a visitor with a container of busybox", f"{memory:.0f} MiB"
    finally:
        site.stop()


def _alone(site: Site, ready: int) -> float:
    until(lambda: site.metric("containers_ready") == ready, PATIENCE)
    visitor = site.visitor()
    seconds = _served(visitor)
    visitor.send("DELETE", "/api/session")
    until(lambda: len(site.containers()) == ready, PATIENCE)
    return seconds


def _crowd(site: Site, options: argparse.Namespace) -> tuple[list[float], float]:
    """Return the seconds that each one waited, and the median of their memory in MiB."""
    visitors = [site.visitor() for _ in range(options.visitors)]

    def come(number: int) -> float:
        time.sleep(number * options.every)
        seconds = _served(visitors[number])
        terminal = visitors[number].terminal()
        terminal.type("utsuwa launch busybox first; echo en''ded\n")
        terminal.read_until("ended")
        terminal.close()
        return seconds

    with ThreadPoolExecutor(options.visitors) as pool:
        waits = list(pool.map(come, range(options.visitors)))
    names = [visitor.session()["container"] for visitor in visitors]
    used = [site.daemon.get(f"/1.0/instances/{name}/state?project=try")["memory"]["usage"] for name in names]
    for visitor in visitors:
        visitor.send("DELETE", "/api/session")
    return waits, statistics.median(used) / MIB


def _served(visitor: Visitor) -> float:
    """Return the seconds until a visitor has a session; one who is refused asks again."""
    begun = time.monotonic()
    while (reply := visitor.begin()).status == HTTPStatus.SERVICE_UNAVAILABLE:
        time.sleep(1)
    assert reply.status == HTTPStatus.CREATED, reply.body
    return time.monotonic() - begun


def _seconds(found: list[float]) -> str:
    return f"{statistics.median(found):.2f} s, at most {max(found):.2f} s"


if __name__ == "__main__":
    sys.exit(main())
