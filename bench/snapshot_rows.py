"""Rows about snapshots and copies of a Debian container, at the wire."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from bench import wire
from bench.places import Place
from bench.table import DEBIAN
from bench.wire import timed

if TYPE_CHECKING:
    from bench.rows import Bench


class SnapshotRows:
    """The part `snapshots`, on all pools that take part. Its rows depend on each other."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def measure(self, number: int, places: Sequence[Place]) -> None:
        """The container has booted once, and so has files of its own."""
        bench, name = self._bench, f"c{number}"
        for place in places:
            wire.create(place.daemon.wire, place.name(name), DEBIAN, place.pool)
            wire.set_state(place.daemon.wire, place.name(name), "start")
        for place in places:
            wire.settle(place.daemon.wire, place.name(name))
        turns = partial(bench.turns, places=places)
        turns("snapshot-running", bench.on_running(name, partial(_snapshot, "s0")))
        for place in places:
            wire.set_state(place.daemon.wire, place.name(name), "stop")
        turns("snapshot", lambda p: _snapshot("s1", p, p.name(name)))
        turns("restore", lambda p: _restore("s1", p, p.name(name)))
        turns("copy", lambda p: _copy(p, p.name(name), p.name(f"k{number}")))
        turns("copy-delete", lambda p: _delete(p, f"/1.0/instances/{p.name(f'k{number}')}"))
        turns("snapshot-delete", lambda p: _delete(p, f"/1.0/instances/{p.name(name)}/snapshots/s1"))
        for place in places:
            wire.remove(place.daemon.wire, place.name(name))


def _snapshot(snapshot: str, place: Place, name: str) -> float:
    body = {"name": snapshot, "stateful": False}
    return timed(lambda: place.daemon.wire.do("POST", f"/1.0/instances/{name}/snapshots", body))


def _restore(snapshot: str, place: Place, name: str) -> float:
    return timed(lambda: place.daemon.wire.do("PUT", f"/1.0/instances/{name}", {"restore": snapshot}))


def _copy(place: Place, name: str, new: str) -> float:
    """Without snapshots, to the same pool."""
    source = {"type": "copy", "source": name, "instance_only": True, "container_only": True}
    body = {"name": new, "source": source}
    return timed(lambda: place.daemon.wire.do("POST", "/1.0/instances", body))


def _delete(place: Place, url: str) -> float:
    return timed(lambda: place.daemon.wire.do("DELETE", url))
