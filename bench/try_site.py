"""How long visitors of the public site wait, alone and one after the other, and how much memory they take.

With Docker, those of them whose turn it is do the tour's last step at the same time.
"""

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

from bench.bound import Bound
from utsuwa.tryit.tour import BY_ID

MIB = 1 << 20
SPARE = {3: "while 3 stand ready", 0: "while none stands ready"}
"""How many containers stand ready besides those in use, and what to say of it."""
PATIENCE = 120


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0 if nothing is left behind."""
    parser = argparse.ArgumentParser(prog="bench/try-test", description=__doc__)
    parser.add_argument("--visitors", type=int, default=20, metavar="N", help="at the same time (20)")
    parser.add_argument("--every", type=float, default=3, metavar="S", help="seconds between them (3)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="visitors that come alone (5)")
    parser.add_argument(
        "--docker", action="store_true", help="with Docker, whose image is built if necessary"
    )
    parser.add_argument(
        "--memory",
        type=int,
        default=3584,
        metavar="MIB",
        help="for all visitors together (3584: what the system, the daemon and the site leave of 4 GiB)",
    )
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
            docker = images.docker_of_visitors() if options.docker else None
            many = options.visitors
            folder = try_site.prepared(
                daemon, busybox, docker, sessions=many, sessions_per_address=many, starts_per_hour=10_000
            )
        bound = Bound(daemon.owner)
        bound.set(options.memory)
        print("| operation | result |\n|---|---|")
        for row in _measure(Site(daemon, folder), options):
            print("| {} | {} |".format(*row), flush=True)
        print(f"| memory of all of them, at most, of {options.memory} MiB | {bound.peak():.0f} MiB |")
        print(f"| processes that were ended for lack of memory | {bound.killed()} |")
    finally:
        problems = daemon.close()
        for problem in problems:
            print(f"bench/try-test: left behind: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _measure(site: Site, options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    try:
        for ready, what in SPARE.items():
            site.start(ready=ready)
            alone = [_alone(site, ready) for _ in range(options.rounds)]
            site.stop()
            yield f"a visitor is served {what}", _seconds(alone)
        for ready, what in SPARE.items():
            site.start(ready=ready)
            until(lambda ready=ready: site.metric("containers_ready") == ready, PATIENCE)
            visitors = [site.visitor() for _ in range(options.visitors)]
            waits = _crowd(visitors, options)
            yield f"{options.visitors} visitors, one each {options.every:g} s, {what}", _seconds(waits)
            if ready:
                yield from _busy(site, visitors, options)
            for visitor in visitors:
                visitor.send("DELETE", "/api/session")
            site.stop()
    finally:
        site.stop()


def _busy(site: Site, visitors: list[Visitor], options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    memory = statistics.median(_memory(site, visitors))
    yield "memory of a visitor with a container of busybox", f"{memory:.0f} MiB"
    if options.docker:
        yield from _docker(site, visitors)


def _alone(site: Site, ready: int) -> float:
    until(lambda: site.metric("containers_ready") == ready, PATIENCE)
    visitor = site.visitor()
    seconds = _served(visitor)
    visitor.send("DELETE", "/api/session")
    until(lambda: len(site.containers()) == ready, PATIENCE)
    return seconds


def _crowd(visitors: list[Visitor], options: argparse.Namespace) -> list[float]:
    """Return the seconds that each one waited."""

    def come(number: int) -> float:
        time.sleep(number * options.every)
        seconds = _served(visitors[number])
        terminal = visitors[number].terminal()
        terminal.type("utsuwa launch busybox first; echo en''ded\n")
        terminal.read_until("ended")
        terminal.close()
        return seconds

    with ThreadPoolExecutor(options.visitors) as pool:
        return list(pool.map(come, range(options.visitors)))


def _docker(site: Site, visitors: list[Visitor]) -> Iterator[tuple[str, str]]:
    """Have those whose turn it is do the step with Docker at the same time."""
    doing = [visitor for visitor in visitors if visitor.ask_turn()["state"] == "turn"]

    def do(visitor: Visitor) -> float:
        terminal = visitor.terminal()
        begun = time.monotonic()
        terminal.type(f"{' && '.join(BY_ID['docker'].commands)}; echo en''ded=$?.\n")
        terminal.read_until("ended=0.")
        seconds = time.monotonic() - begun
        terminal.close()
        assert visitor.check("docker")["done"]
        return seconds

    with ThreadPoolExecutor(len(doing)) as pool:
        seconds = list(pool.map(do, doing))
    yield f"{len(doing)} visitors do the step with Docker at once", _seconds(seconds)
    now, most = _memory(site, doing), _memory(site, doing, "usage_peak")
    yield "memory of one of these, after it", f"{statistics.median(now):.0f} MiB"
    yield "at most, meanwhile", f"{max(most):.0f} MiB"
    yield f"memory of all {len(visitors)} visitors", f"{sum(_memory(site, visitors)):.0f} MiB"


def _memory(site: Site, visitors: list[Visitor], key: str = "usage") -> list[float]:
    """Return the memory of visitors' containers in MiB."""
    names = [visitor.session()["container"] for visitor in visitors]
    states = [site.daemon.get(f"/1.0/instances/{name}/state?project=try") for name in names]
    return [state["memory"][key] / MIB for state in states]


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
