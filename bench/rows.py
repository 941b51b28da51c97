"""The measured operations, run turn by turn on all subjects, the order reversed every other round."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

from tests.support.images import Image

from bench import memory, wire
from bench.alias_rows import AliasRows
from bench.bare import Bare
from bench.crowd_rows import CrowdRows
from bench.daemons import BRIDGE, Daemon
from bench.device_rows import DeviceRows
from bench.docker_rows import DockerRows
from bench.file_rows import FileRows
from bench.guest_rows import GuestRows
from bench.https_rows import HttpsRows
from bench.image_rows import ImageRows
from bench.migration_rows import MigrationRows
from bench.nested_rows import NestedRows
from bench.places import AT_A_TIME, Place, launch, median_of, remove
from bench.samples import Samples, Subject
from bench.snapshot_rows import SnapshotRows
from bench.state_rows import StateRows
from bench.table import ALIASES, BUSYBOX, DEBIAN, ROWS
from bench.wire import Wire, timed


@dataclass(frozen=True)
class Sizes:
    """How much of everything is done; no round begins after `seconds`."""

    rounds: int
    other_rounds: int
    """Rounds that pools take part in which are not their daemon's best one."""
    bursts: int
    burst: int
    instances: int
    execs: int
    many: int
    """Stopped instances in the longest list."""
    seconds: float


def _named(place: Place, words: Sequence[str]) -> list[str]:
    """Words of a command line, with an instance's short name (a letter and a number) made whole."""
    return [place.name(word) if re.fullmatch(r"[a-z]\d+", word) else word for word in words]


_ROUND = ("ready", "debian", "busybox", "files", "devices", "guest", "snapshots", "state")
"""The parts of a round."""


class Bench:
    """One run; `samples` fills up."""

    def __init__(
        self,
        daemons: Sequence[Daemon],
        bare: Bare | None,
        images: dict[str, Image],
        sizes: Sizes,
        rows: frozenset[str],
    ) -> None:
        """`rows` are the keys of those to measure, with the others of their parts that these need."""
        self._rows = rows
        self.daemons = daemons
        self.bare = bare
        self.images = images
        self.sizes = sizes
        self.samples = Samples()
        self.places = [
            Place(Subject(daemon.name, pool, daemon.kind.ours), daemon)
            for daemon in daemons
            for pool in daemon.pools
        ]
        self.rounds = 0
        """How many were done."""
        self.problems: list[str] = []
        self._forward: dict[str, bool] = {}
        self._began = time.monotonic()

    def run(self) -> None:
        images = ImageRows(self)
        if self._wanted("images"):
            self._part("images", images.measure)
        self._part("both images on all pools", images.warm)
        for number in range(self.sizes.rounds if self._wanted(*_ROUND) else 0):
            if self._spent > self.sizes.seconds:
                break
            self._part(f"round {number + 1} of {self.sizes.rounds}", partial(self._round, number))
            self.rounds += 1
        if self._wanted("migration"):
            self._part("copies to other daemons", MigrationRows(self).measure)
        if self._wanted("docker"):
            self._part("Docker in a container", DockerRows(self).measure)
        if self._wanted("nested"):
            self._part("a daemon in a container", NestedRows(self).measure)
        for number in range(self.sizes.bursts if self._wanted("bursts") else 0):
            listing = number == self.sizes.bursts - 1
            action = partial(self._bursts, number, listing=listing)
            self._part(f"burst {number + 1} of {self.sizes.bursts}", action)
        if self._wanted("many"):
            self._part(f"a list with {self.sizes.many} stopped instances", CrowdRows(self).measure_list)
        if self._wanted("crowd"):
            self._part(f"{self.sizes.instances} running instances", CrowdRows(self).measure_crowd)
        if self._wanted("aliases"):
            self._part(f"{ALIASES} aliases", AliasRows(self).measure)
        if self._wanted("https"):
            self._part(f"{self.sizes.execs} commands over HTTPS", HttpsRows(self).measure)

    def _wanted(self, *parts: str) -> bool:
        return any(row.part in parts and row.key in self._rows for row in ROWS)

    def wants(self, row: str) -> bool:
        return row in self._rows

    def _part(self, title: str, action: Callable[[], None]) -> None:
        """What fails outside of a row is told in the report; the other parts go on."""
        print(f"bench: {self._spent:4.0f} s: {title}", file=sys.stderr, flush=True)
        try:
            action()
        except Exception as error:
            self.problems.append(f"{title}: {error}")

    @property
    def _spent(self) -> float:
        return time.monotonic() - self._began

    def turns(
        self, row: str, action: Callable[[Place], float], places: Sequence[Place] | None = None
    ) -> None:
        """Measure a row on each place, in the other direction than the last time, and than the row before."""
        chosen = list(self.places if places is None else places)
        forward = not self._forward.get(row, len(self._forward) % 2 == 0)
        self._forward[row] = forward
        for place in chosen if forward else reversed(chosen):
            self.samples.measure(row, place.subject.label, partial(action, place))

    @contextmanager
    def discarding(self, place: Place, name: str) -> Iterator[None]:
        """Remove the instance where the operation on it fails, so that no later row is measured on it."""
        try:
            yield
        except Exception:
            with suppress(wire.WireError):
                wire.remove(place.daemon.wire, name)
            raise

    def launch(self, place: Place, image: str, name: str) -> None:
        place.daemon.client("launch", image, name, "-s", place.pool)

    # ---- one container at a time

    def taking_part(self, number: int) -> Sequence[Place]:
        """Those that take part in a round."""
        return self.places if number < self.sizes.other_rounds else self.best_places()

    def _round(self, number: int) -> None:
        places = self.taking_part(number)
        if self._wanted("ready"):
            self.turns("ready", partial(self._ready, f"r{number}"), places)
        for part, measure in (
            ("debian", self._debian_round),
            ("busybox", self._busybox_round),
            ("files", FileRows(self).measure),
            ("devices", DeviceRows(self).measure),
            ("guest", GuestRows(self).measure),
            ("snapshots", SnapshotRows(self).measure),
            ("state", StateRows(self).measure),
        ):
            if self._wanted(part):
                measure(number, places)

    def _debian_round(self, number: int, places: Sequence[Place]) -> None:
        name = f"d{number}"
        new = f"n{number}"
        turns = partial(self.turns, places=places)
        running = partial(self.running, lambda p: [p.name(name)])
        turns("launch", self._booting(name, lambda p, n: self.launch(p, DEBIAN, n)))
        turns("exec-wire", running(partial(self._exec_wire, name)))
        turns("exec-client", running(self.client(5, "exec", name, "--", "true")))
        turns("exec-own", running(self.own(5, "exec", name, "--", "true")))
        turns("restart", running(self._booting(name, lambda p, n: p.daemon.client("restart", "-f", n))))
        turns("stop", running(self.client(1, "stop", "-f", name)))
        turns("start", self._booting(name, lambda p, n: p.daemon.client("start", n)))
        turns("stop-wire", running(partial(self._stop, name)))
        turns("start-wire", self._booting(name, lambda p, n: wire.set_state(p.daemon.wire, n, "start")))
        self._bare_round()
        turns("stop-wire", running(partial(self._stop, name)))
        turns("delete", self.client(1, "delete", name))
        turns("init", lambda p: timed(lambda: p.daemon.client("init", DEBIAN, p.name(new), "-s", p.pool)))
        turns("delete-new", self.client(1, "delete", new))

    def _busybox_round(self, number: int, places: Sequence[Place]) -> None:
        name = f"b{number}"
        turns = partial(self.turns, places=places)
        running = partial(self.running, lambda p: [p.name(name)])
        turns("busybox-launch", self._booting(name, lambda p, n: self.launch(p, BUSYBOX, n)))
        turns("busybox-exec-wire", running(partial(self._exec_wire, name)))
        turns("busybox-delete", running(self.client(1, "delete", "-f", name)))

    def _ready(self, name: str, place: Place) -> float:
        """A launch on a bridge with DHCP, until one can work with the instance; then it is removed."""
        daemon, whole = place.daemon, place.name(name)
        words = ("launch", DEBIAN, whole, "-s", place.pool, "-n", BRIDGE)
        with self.discarding(place, whole):
            start = time.perf_counter()
            daemon.client(*words)
            state = wire.await_systemd(daemon.wire, whole)
            wire.await_address(daemon.wire, whole)
            seconds = time.perf_counter() - start
            wire.check_running(daemon.wire, whole)
        wire.remove(daemon.wire, whole)
        if state != "running":
            self.samples.remark("ready", place.subject.label, f"its systemd says {state}")
        return seconds

    def _booting(self, name: str, action: Callable[[Place, str], object]) -> Callable[[Place], float]:
        """The action timed; the boot that it begins is waited for afterwards, so that it slows nobody.

        The instance must run then.
        """

        def measure(place: Place) -> float:
            connection, whole = place.daemon.wire, place.name(name)
            with self.discarding(place, whole):
                seconds = timed(lambda: action(place, whole))
                wire.check_running(connection, whole)
                wire.settle(connection, whole)
                wire.check_running(connection, whole)
            return seconds

        return measure

    def running(
        self, names: Callable[[Place], Sequence[str]], action: Callable[[Place], float]
    ) -> Callable[[Place], float]:
        """The action, refused where one of the instances does not run."""

        def measure(place: Place) -> float:
            wire.check_running(place.daemon.wire, *names(place))
            return action(place)

        return measure

    def on_running(self, name: str, action: Callable[[Place, str], float]) -> Callable[[Place], float]:
        """The action on the instance of that short name, refused where it does not run."""
        return self.running(lambda p: [p.name(name)], lambda p: action(p, p.name(name)))

    def _stop(self, name: str, place: Place) -> float:
        return timed(lambda: wire.set_state(place.daemon.wire, place.name(name), "stop"))

    def _exec_wire(self, name: str, place: Place) -> float:
        return median_of(10, lambda: wire.run_inside(place.daemon.wire, place.name(name), "true"))

    def client(self, count: int, *words: str) -> Callable[[Place], float]:
        """A command of the usual client, the median of several; a word like `d0` is an instance."""
        return lambda p: median_of(count, lambda: p.daemon.client(*_named(p, words)))

    def own(self, count: int, *words: str) -> Callable[[Place], float]:
        """The same with our client at our daemon, with their own at a peer."""

        def measure(place: Place) -> float:
            client = place.daemon.chosen_client(own=True)
            return median_of(count, lambda: client(*_named(place, words)))

        return measure

    def _bare_round(self) -> None:
        bare = self.bare
        if bare is not None:
            self.samples.measure("start-wire", bare.name, lambda: timed(bare.start))
            self.samples.measure("stop-wire", bare.name, lambda: timed(bare.stop))

    # ---- many containers

    def best_places(self) -> list[Place]:
        """The first pool of each daemon."""
        return [place for place in self.places if place.pool == place.daemon.pools[0]]

    def _bursts(self, number: int, *, listing: bool) -> None:
        """Launch many and delete them again; the last time the best pools' ones are listed in between."""
        best = self.best_places() if listing else []
        for place in [place for place in self.places if place not in best]:
            self.samples.measure("burst-launch", place.subject.label, partial(self._burst, place, number))
            self.samples.measure("burst-delete", place.subject.label, partial(self._unburst, place, number))
            self._sweep(place)
        for place in best:
            self.samples.measure("burst-launch", place.subject.label, partial(self._burst, place, number))
        if best:
            self._listings(best, number)
        for place in best:
            self.samples.measure("burst-delete", place.subject.label, partial(self._unburst, place, number))
            self._sweep(place)

    def get(self, url: str, place: Place) -> float:
        return median_of(5, lambda: place.daemon.wire.get(url))

    def _names(self, place: Place, number: int) -> list[str]:
        return [place.name(f"m{number}x{i}") for i in range(self.sizes.burst)]

    def _burst(self, place: Place, number: int) -> float:
        os.sync()  # what the one before has left to write is not this one's
        names = self._names(place, number)
        seconds = self.together(place, names, partial(launch, place))
        wire.check_running(place.daemon.wire, *names)
        return seconds

    def _unburst(self, place: Place, number: int) -> float:
        names = self._names(place, number)
        wire.check_running(place.daemon.wire, *names)
        return self.together(place, names, remove)

    def together(self, place: Place, names: list[str], action: Callable[[str, Wire], None]) -> float:
        """Seconds of the action on all names, several at a time; every one must succeed."""

        def one(name: str) -> None:
            with Wire(place.daemon.socket) as connection:
                action(name, connection)

        with ThreadPoolExecutor(AT_A_TIME) as threads:
            return timed(lambda: list(threads.map(one, names)))

    def _sweep(self, place: Place) -> None:
        """Remove what a failed burst left of it and the stopped ones."""
        connection = place.daemon.wire
        for instance in connection.get("/1.0/instances?recursion=1"):
            if instance["name"].startswith((place.name("m"), place.name("s"))):
                wire.remove(connection, instance["name"])

    def _listings(self, places: list[Place], number: int) -> None:
        for place in places:
            for i in range(self.sizes.instances - self.sizes.burst):
                wire.create(place.daemon.wire, place.name(f"s{i}"), BUSYBOX, place.pool)
        turns = partial(self.turns, places=places)
        running = partial(self.running, lambda p: self._names(p, number))
        for _ in range(self.sizes.rounds):
            turns("get-server", lambda p: median_of(100, lambda: p.daemon.wire.get("/1.0")))
            for depth in (1, 2):
                turns(f"list-{depth}", running(partial(self.get, f"/1.0/instances?recursion={depth}")))
            turns("list-client", running(self.client(3, "list")))
            turns("list-own", running(self.own(3, "list")))
        turns("memory-daemon", running(lambda p: memory.daemon(p.daemon)))
        turns("memory-monitor", running(lambda p: memory.monitor(p.daemon)))
