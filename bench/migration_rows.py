"""Rows about copies to another daemon of the same kind, at the wire: the other one pulls, over HTTPS."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support import packages

from bench import ssh, wire
from bench.daemons import ADDRESS, Daemon
from bench.live_rows import LiveRows
from bench.places import Place
from bench.table import BIG_MIB, BUSYBOX, DEBIAN, FAR_MIB
from bench.wire import Wire, timed

if TYPE_CHECKING:
    from bench.rows import Bench

_NEW = "dd if=/dev/urandom of=/root/$i bs=1M count=1 2>/dev/null || exit 1"
_BIG = f"dd if=/dev/urandom of=/root/big bs=1M count={BIG_MIB} 2>/dev/null"


def _each(count: int) -> str:
    return f"i=0; while [ $i -lt {count} ]; do {_NEW}; i=$((i + 1)); done"


class MigrationRows:
    """The part `migration`, on all pools; each daemon gets another one beside it."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._far: dict[str, Daemon] = {}

    def measure(self) -> None:
        bench = self._bench
        with ExitStack() as stack:
            for daemon in bench.daemons:
                stack.callback(_listen, daemon.wire, "")
                _listen(daemon.wire, ADDRESS)
                far = self._far[daemon.name] = Daemon(daemon.kind, daemon.home.parent, daemon.box)
                stack.callback(self._close, far)
                far.start()
            for number in range(bench.sizes.rounds):
                self._round(number, bench.taking_part(number))

    def _close(self, far: Daemon) -> None:
        self._bench.problems.extend(far.close())

    def _wire(self, place: Place) -> Wire:
        return self._far[place.daemon.name].wire

    def _round(self, number: int, places: Sequence[Place]) -> None:
        bench = self._bench
        turns = partial(bench.turns, places=places)
        with self._stopped(places, f"m{number}", DEBIAN, "true"):
            turns("far-copy", partial(self._copy, f"m{number}"))
            for place in places:
                far = self._far[place.daemon.name]
                if not far.wire.get("/1.0/images"):
                    far.import_image(bench.images[DEBIAN], DEBIAN)
                wire.create(far.wire, place.name("warm"), DEBIAN, place.pool)
            turns("far-copy-image", partial(self._copy, f"m{number}"))
            for place in places:
                wire.remove(self._wire(place), place.name("warm"))
        for place in places:
            if place.daemon.kind.ours and place in bench.best_places():
                LiveRows(bench).measure(number, place, self._far[place.daemon.name])
        for place in places:
            for url in self._wire(place).get("/1.0/images"):
                self._wire(place).do("DELETE", url)
        with self._stopped(places, f"y{number}", BUSYBOX, _each(FAR_MIB)):
            turns("far-copy-files", partial(self._copy, f"y{number}", keep=True))
            for place in places:
                _run(place.daemon.wire, place.name(f"y{number}"), _each(FAR_MIB // 100))
            turns("far-refresh", partial(self._copy, f"y{number}", refresh=True))
        if bench.wants("far-copy-big") or bench.wants("far-copy-big-alone"):
            with self._stopped(places, f"z{number}", BUSYBOX, _BIG):
                turns("far-copy-big", partial(self._copy_big, f"z{number}"))

    @contextmanager
    def _stopped(self, places: Sequence[Place], name: str, image: str, command: str) -> Iterator[None]:
        """Have a container of that name on each place that has run, and a command in it."""
        for place in places:
            wire.create(place.daemon.wire, place.name(name), image, place.pool)
            _run(place.daemon.wire, place.name(name), command)
        yield
        for place in places:
            wire.remove(place.daemon.wire, place.name(name))

    def _copy(self, name: str, place: Place, *, keep: bool = False, refresh: bool = False) -> float:
        """Copy a container to the other daemon; without `keep`, the copy is removed after that."""
        near, far, whole = place.daemon.wire, self._wire(place), place.name(name)
        seconds = _synced(lambda: _pull(near, far, whole, place.pool, refresh=refresh))
        if not keep:
            wire.remove(far, whole)
        return seconds

    def _copy_big(self, name: str, place: Place) -> float:
        """As a multiple of what rsync takes over ssh; that of two of its processes alone is a row as well."""
        files = packages.missing_from(self._bench.images[DEBIAN], ssh.PACKAGES)
        with tempfile.TemporaryDirectory(prefix="ub-", dir=place.daemon.home.parent) as folder:
            source, target, home = (Path(folder, name) for name in ("big", "copied", "ssh"))
            home.mkdir()
            _fill(source)
            with ssh.serving(place.daemon.box, files, home) as shell:
                over_ssh = _synced(partial(shell.rsync, source, target))
            target.unlink()
            command = ["rsync", "--whole-file", str(source), str(target)]
            alone = _synced(lambda: subprocess.run(command, check=True, stdin=subprocess.DEVNULL))
        seconds = self._copy(name, place)
        self._bench.samples.measure("far-copy-big-alone", place.subject.label, lambda: seconds / alone)
        return seconds / over_ssh


def _fill(path: Path) -> None:
    with path.open("wb") as file:
        for _ in range(BIG_MIB):
            file.write(os.urandom(1 << 20))


def _synced(action: Callable[[], object]) -> float:
    """Seconds of the action, after everything that was written before is on disk."""
    os.sync()
    return timed(action)


def _listen(connection: Wire, address: str) -> None:
    connection.do("PATCH", "/1.0", {"config": {"core.https_address": address}})


def _run(connection: Wire, name: str, command: str) -> None:
    """Run a command in a stopped container, which is started for that and has booted then."""
    wire.set_state(connection, name, "start")
    wire.settle(connection, name)
    wire.run_inside(connection, name, "sh", "-c", command)
    wire.set_state(connection, name, "stop")


def _pull(near: Wire, far: Wire, name: str, pool: str, *, refresh: bool) -> None:
    """Copy a stopped container without its snapshots, as clients do in the mode `pull`."""
    offer = near.ask(
        "POST", f"/1.0/instances/{name}", {"name": name, "migration": True, "instance_only": True}
    )
    instance = near.get(f"/1.0/instances/{name}")
    config = {k: v for k, v in instance["config"].items() if k == "volatile.base_image"}
    source = wire.pull_from(near, ADDRESS, offer) | {
        "base-image": config.get("volatile.base_image", ""),
        "instance_only": True,
        "refresh": refresh,
    }
    devices = {"root": {"type": "disk", "path": "/", "pool": pool}}
    body = {"name": name, "architecture": instance["architecture"], "config": config, "devices": devices}
    far.do("POST", "/1.0/instances", body | {"source": source})
