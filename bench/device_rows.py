"""Rows about devices that are added to a running container, and removed again."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from bench import wire
from bench.daemons import BRIDGE
from bench.places import Place, running
from bench.wire import timed

if TYPE_CHECKING:
    from bench.rows import Bench

_REPEATS = 3


class DeviceRows:
    """The part `devices`, on each daemon's best pool: it does not depend on it."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def measure(self, number: int, _places: Sequence[Place]) -> None:
        bench = self._bench
        places, name = bench.best_places(), f"h{number}"
        with running(places, name) as source:
            added = {
                "disk": {"type": "disk", "source": str(source), "path": "/mnt/added"},
                "nic": {"type": "nic", "network": BRIDGE, "name": "eth7"},
            }
            for kind, device in added.items():
                if bench.wants(f"{kind}-plug") or bench.wants(f"{kind}-unplug"):
                    for _ in range(_REPEATS):
                        plug = bench.on_running(name, partial(self._set, kind, device))
                        unplug = bench.on_running(name, partial(self._set, kind, None))
                        bench.turns(f"{kind}-plug", plug, places)
                        bench.turns(f"{kind}-unplug", unplug, places)

    def _set(self, kind: str, device: dict[str, str] | None, place: Place, name: str) -> float:
        """Add the device, or remove it if None; only the change itself is timed."""
        connection = place.daemon.wire
        instance = connection.get(f"/1.0/instances/{name}")
        devices = instance["devices"] | {"added": device}
        if device is None:
            del devices["added"]
        body = instance | {"devices": devices}
        seconds = timed(lambda: connection.do("PUT", f"/1.0/instances/{name}", body))
        inside = {"disk": "grep -q ' /mnt/added ' /proc/mounts", "nic": "test -e /sys/class/net/eth7"}[kind]
        expected = inside if device is not None else f"! {inside}"
        wire.run_inside(connection, name, "sh", "-c", expected)
        return seconds
