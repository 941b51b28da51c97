"""What a row is measured on: the pools of running daemons."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import wire
from bench.daemons import Daemon
from bench.samples import Subject
from bench.table import BUSYBOX
from bench.wire import Wire, timed

AT_A_TIME = 8
"""Number of clients where several do something at a time."""


@dataclass(frozen=True)
class Place:
    """A pool of a running daemon."""

    subject: Subject
    daemon: Daemon

    @property
    def pool(self) -> str:
        return self.subject.pool

    def name(self, rest: str) -> str:
        """An instance's name; cgroups of all daemons lie side by side, so it tells the daemon."""
        return f"{self.subject.daemon[0]}{self.subject.pool[0]}-{rest}"


def median_of(count: int, action: Callable[[], object]) -> float:
    """Seconds of the action, the median of several."""
    return statistics.median(timed(action) for _ in range(count))


@contextmanager
def running(places: Sequence[Place], name: str) -> Iterator[Path]:
    """Have a running container of that name on each place; yield a directory beside the daemons' own."""
    for place in places:
        wire.create(place.daemon.wire, place.name(name), BUSYBOX, place.pool)
        wire.set_state(place.daemon.wire, place.name(name), "start")
    with tempfile.TemporaryDirectory(prefix="ub-", dir=places[0].daemon.home.parent) as folder:
        yield Path(folder)
    for place in places:
        wire.remove(place.daemon.wire, place.name(name))


# Actions on one of many busybox instances, by a connection of a client.


def create(place: Place, name: str, connection: Wire) -> None:
    wire.create(connection, name, BUSYBOX, place.pool)


def start(name: str, connection: Wire) -> None:
    wire.set_state(connection, name, "start")


def launch(place: Place, name: str, connection: Wire) -> None:
    create(place, name, connection)
    start(name, connection)


def remove(name: str, connection: Wire) -> None:
    wire.remove(connection, name)
