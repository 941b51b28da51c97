"""Rows about the running state of containers, at the wire. Only Utsuwa: peers need a CRIU of the host."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from tests.support import criu

from bench import wire
from bench.places import Place
from bench.table import BUSYBOX, DEBIAN, TOUCHED_MIB
from bench.wire import timed

if TYPE_CHECKING:
    from bench.rows import Bench

_TOUCH = (
    f'perl -e \'open F,"/dev/urandom"; read F,$x,{TOUCHED_MIB << 20}; open G,">/run/touched"; close G; '
    "sleep 1000 while 1' </dev/null >/dev/null 2>&1 & while ! test -e /run/touched; do sleep 0.1; done"
)
"""Fills memory with what cannot be compressed. A sleep is interrupted when it is saved, so it is repeated."""


_PATIENCE = 10.0


class StateRows:
    """The part `state`, on the best pool."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def measure(self, number: int, _places: Sequence[Place]) -> None:
        bench = self._bench
        places = [place for place in bench.best_places() if place.daemon.kind.ours]
        for place in places:
            with suppress(FileExistsError):
                (place.daemon.dir / "criu").symlink_to(criu.installed())
        for image, suffix, touch in ((BUSYBOX, "-busybox", ""), (DEBIAN, "", _TOUCH)):
            if not any(bench.wants(f"state-{verb}{suffix}") for verb in ("snapshot", "restore")):
                continue
            name = f"s{number}{image[0]}"
            for place in places:
                launch(place, place.name(name), image, touch, {"migration.stateful": "true"})
            bench.turns(f"state-snapshot{suffix}", bench.on_running(name, _snapshot), places)
            bench.turns(f"state-restore{suffix}", bench.on_running(name, partial(_restore, touch)), places)
            for place in places:
                wire.remove(place.daemon.wire, place.name(name))


def launch(place: Place, name: str, image: str, touch: str, config: Mapping[str, str]) -> None:
    """Have a container run whose state can be saved, with a command in it."""
    connection = place.daemon.wire
    wire.create(connection, name, image, place.pool)
    connection.do("PATCH", f"/1.0/instances/{name}", {"config": config})
    wire.set_state(connection, name, "start")
    wire.settle(connection, name)
    if touch:
        wire.run_inside(connection, name, "sh", "-c", touch)
    deadline = time.monotonic() + _PATIENCE
    while connection.get(f"/1.0/instances/{name}/checkpoint")["obstacles"] and time.monotonic() < deadline:
        time.sleep(0.2)  # until the messages about its boot were read


def _snapshot(place: Place, name: str) -> float:
    body = {"name": "s", "stateful": True}
    return timed(lambda: place.daemon.wire.do("POST", f"/1.0/instances/{name}/snapshots", body))


def _restore(touch: str, place: Place, name: str) -> float:
    """With the stop of the running container; what was in memory is checked to be there again."""
    body = {"restore": "s", "stateful": True}
    seconds = timed(lambda: place.daemon.wire.do("PUT", f"/1.0/instances/{name}", body))
    if touch:
        wire.run_inside(place.daemon.wire, name, "sh", "-c", "pidof perl")
    return seconds
