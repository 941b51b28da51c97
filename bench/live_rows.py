"""Rows about moves of running containers to another daemon: the downtime, as the container itself saw it."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support import criu

from bench import wire
from bench.daemons import ADDRESS
from bench.state_rows import launch
from bench.table import BUSYBOX, DEBIAN, TOUCHED_MIB
from bench.wire import Wire, WireError

if TYPE_CHECKING:
    from bench.daemons import Daemon
    from bench.places import Place
    from bench.rows import Bench

_BEAT = """
mkdir /beat; (i=0; while :; do : >/beat/$i; i=$((i + 1)); usleep 10000 2>/dev/null || sleep 0.01; done) \
</dev/null >/dev/null 2>&1 &
"""
"""Makes a file each hundredth of a second, whose time tells when the container ran."""
_PAGES = 256
"""Written to each tenth of a second: 10 MiB/s."""
_DIRTY = (
    f'perl -e \'open F,"/dev/urandom"; read F,$x,{TOUCHED_MIB << 20}; open G,">/run/touched"; close G; '
    f"while (1) {{ for (1..{_PAGES}) {{ substr($x,4096*int(rand({TOUCHED_MIB << 8})),8)=pack(q(d),rand) }} "
    "select(undef,undef,undef,0.1) }' </dev/null >/dev/null 2>&1 & "
    "while ! test -e /run/touched; do sleep 0.1; done"
)
_CONFIG = {"migration.stateful": "true", "migration.incremental.memory": "true"}


class LiveRows:
    """To and fro between a daemon and the one beside it. Only Utsuwa: peers need a CRIU of the host."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def measure(self, number: int, place: Place, far: Daemon) -> None:
        for daemon in (place.daemon, far):
            with suppress(FileExistsError):
                (daemon.dir / "criu").symlink_to(criu.installed())
        for row, image, command in (("live-busybox", BUSYBOX, ""), ("live-debian", DEBIAN, _DIRTY)):
            if not self._bench.wants(row):
                continue
            name = place.name(f"l{number}{image[0]}")
            launch(place, name, image, _BEAT + command, _CONFIG)
            move = partial(_move, place.daemon.wire, far.wire, name)
            self._bench.samples.measure(row, place.subject.label, move)
            for connection in (place.daemon.wire, far.wire):
                with suppress(WireError):  # it is at one of them
                    wire.remove(connection, name)


def _move(near: Wire, far: Wire, name: str) -> float:
    """Move a running container as clients do in the mode `pull`; return its downtime in seconds."""
    offer = near.ask("POST", f"/1.0/instances/{name}", {"name": name, "migration": True, "live": True})
    instance = near.get(f"/1.0/instances/{name}")
    source = wire.pull_from(near, ADDRESS, offer) | {"live": True}
    kept = ("architecture", "config", "devices", "profiles")
    body = {"name": name, "source": source} | {key: instance[key] for key in kept}
    far.do("POST", "/1.0/instances", body)
    near.do("DELETE", f"/1.0/instances/{name}")
    beats = Path(f"/proc/{wire.pid_of(far, name)}/root/beat")
    times = sorted(path.stat().st_mtime for path in beats.iterdir())
    return max(after - before for before, after in zip(times, times[1:], strict=False))
