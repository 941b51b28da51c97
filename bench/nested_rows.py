"""Rows about a daemon in a container, whose layers have no id-mapped mounts. Only Utsuwa is measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from tests.support.nested import BIN, PREPARE, SHOWN, START_DAEMON

from bench import wire
from bench.places import Place
from bench.table import BUSYBOX, DEBIAN

if TYPE_CHECKING:
    from bench.rows import Bench

_NAME, _IMAGE = "o0", "/srv/image"
_ENVIRONMENT = {"PATH": f"{BIN}:/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
_POOL = "/var/lib/utsuwa/storage-pools/default/containers"
_SCRIPT, _RESULTS = "/root/launch.py", "/root/results"
_LAUNCH = f"""
import json, subprocess, sys, time
name = sys.argv[1]
begun = time.perf_counter()
subprocess.run(["utsuwa", "launch", "debian", name], check=True, stdin=subprocess.DEVNULL)
seconds = time.perf_counter() - begun
boot = ["utsuwa", "exec", name, "--", "sh", "-c", {wire.BOOTED!r}]
booted = subprocess.run(boot, stdin=subprocess.DEVNULL)
if booted.returncode not in (0, 10):
    sys.exit("systemd does not run")
used = subprocess.run(["du", "-skx", "{_POOL}/" + name], check=True, capture_output=True, text=True)
with open("{_RESULTS}", "w") as file:
    json.dump([seconds, int(used.stdout.split()[0]) / 1024], file)
subprocess.run(["utsuwa", "delete", "--force", name], check=True, stdin=subprocess.DEVNULL)
"""


class NestedRows:
    """The part `nested`, on the best pool."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def measure(self) -> None:
        bench = self._bench
        for place in [place for place in bench.best_places() if place.daemon.kind.ours]:
            with _daemon_inside(bench, place):
                self._launch(place, "first")  # makes the copy of the image that the others share
                for number in range(bench.sizes.rounds):
                    seconds, size = self._launch(place, f"n{number}")
                    for row, value in (("nested-launch", seconds), ("nested-size", size)):
                        bench.samples.measure(row, place.subject.label, partial(float, value))

    def _launch(self, place: Place, name: str) -> tuple[float, float]:
        """Seconds of the client's command inside, and MiB of the container when it has booted."""
        _run(place, f"python {_SCRIPT} {name}")
        seconds, size = json.loads(place.daemon.wire.pull(place.name(_NAME), _RESULTS))
        return seconds, size


@contextmanager
def _daemon_inside(bench: Bench, place: Place) -> Iterator[None]:
    """A container with this host's programs and a daemon, which has a pool and the Debian image."""
    image = bench.images[DEBIAN]
    shown = {str(folder): str(folder) for folder in SHOWN} | {str(image.rootfs.parent): _IMAGE}
    devices = {
        f"shown{number}": {"type": "disk", "source": source, "path": path, "readonly": "true"}
        for number, (source, path) in enumerate(shown.items())
    }
    state = {"type": "disk", "source": "instance:utsuwa", "path": "/var/lib/utsuwa"}
    config = {"security.nesting": "true"} | {f"environment.{k}": v for k, v in _ENVIRONMENT.items()}
    connection, name = place.daemon.wire, place.name(_NAME)
    wire.create(connection, name, BUSYBOX, place.pool)
    try:
        connection.do(
            "PATCH", f"/1.0/instances/{name}", {"config": config, "devices": {**devices, "state": state}}
        )
        wire.set_state(connection, name, "start")
        connection.push(name, _SCRIPT, _LAUNCH.encode(), {})
        files = " ".join(f"{_IMAGE}/{file.name}" for file in (image.metadata, image.rootfs))
        for script in (
            PREPARE,
            START_DAEMON,
            "utsuwad init --auto",
            f"utsuwa image import {files} --alias debian",
        ):
            _run(place, script)
        yield
    finally:
        wire.remove(connection, name)


def _run(place: Place, script: str) -> None:
    wire.run_inside(place.daemon.wire, place.name(_NAME), "sh", "-c", script)
