"""Rows about files of a running container: single ones at the wire, trees and a big one with the clients."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bench import wire
from bench.places import Place, median_of, running
from bench.table import BIG_MIB, FILES
from bench.wire import timed

if TYPE_CHECKING:
    from bench.rows import Bench

_SMALL = 1024
_FOLDERS = 10
_REPEATS = 30
"""Number of pushes and pulls of small files of which a sample is the median."""


class FileRows:
    """The part `files`, on each daemon's best pool: what is measured hardly depends on it."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._number = 0

    def measure(self, number: int, _places: Sequence[Place]) -> None:
        bench = self._bench
        places, name = bench.best_places(), f"f{number}"
        with running(places, name) as local:
            _fill(local / "tree")
            rows: dict[str, Callable[[Place, str], float]] = {
                "file-push": self._push,
                "file-pull": self._pull,
                "tree-push": partial(self._push_tree, local, own=False),
                "tree-push-own": partial(self._push_tree, local, own=True),
                "tree-pull": partial(self._pull_tree, local, own=False),
                "tree-pull-own": partial(self._pull_tree, local, own=True),
            }
            for row, action in rows.items():
                if bench.wants(row):
                    bench.turns(row, bench.on_running(name, action), places)
            if bench.wants("big-push") or bench.wants("big-push-cp"):
                _fill_big(local / "big")
                bench.turns("big-push", bench.on_running(name, partial(self._push_big, local)), places)

    def _push(self, place: Place, name: str) -> float:
        """New files, with owner and mode."""
        headers = {"X-LXD-uid": "0", "X-LXD-gid": "0", "X-LXD-mode": "0644", "X-LXD-type": "file"}
        content = os.urandom(_SMALL)

        def push() -> None:
            self._number += 1
            place.daemon.wire.push(name, f"/root/small-{self._number}", content, headers)

        return median_of(_REPEATS, push)

    def _pull(self, place: Place, name: str) -> float:
        content = os.urandom(_SMALL)
        place.daemon.wire.push(name, "/root/pulled", content, {})

        def pull() -> None:
            if place.daemon.wire.pull(name, "/root/pulled") != content:
                raise wire.WireError(f"{name} has another content in the file than was pushed")

        return median_of(_REPEATS, pull)

    def _push_tree(self, local: Path, place: Place, name: str, *, own: bool) -> float:
        client = place.daemon.chosen_client(own=own)
        os.sync()
        seconds = timed(lambda: client("file", "push", "-r", str(local / "tree"), f"{name}/root/"))
        wire.run_inside(
            place.daemon.wire, name, "sh", "-c", f"test $(find /root/tree -type f | wc -l) = {FILES}"
        )
        wire.run_inside(place.daemon.wire, name, "rm", "-r", "/root/tree")
        return seconds

    def _pull_tree(self, local: Path, place: Place, name: str, *, own: bool) -> float:
        client = place.daemon.chosen_client(own=own)
        client("file", "push", "-r", str(local / "tree"), f"{name}/root/")
        target = local / "pulled"
        target.mkdir()
        try:
            os.sync()
            seconds = timed(lambda: client("file", "pull", "-r", f"{name}/root/tree", f"{target}/"))
            found = sum(len(files) for _, _, files in os.walk(target))
            if found != FILES:
                raise wire.WireError(f"{found} files were pulled instead of {FILES}")
        finally:
            shutil.rmtree(target)
        wire.run_inside(place.daemon.wire, name, "rm", "-r", "/root/tree")
        return seconds

    def _push_big(self, local: Path, place: Place, name: str) -> float:
        """A new file, right after `cp` made a copy on the same file system, for the row about both."""
        client = place.daemon.chosen_client(own=True)
        os.sync()
        copy = ["cp", str(local / "big"), str(local / "copied")]
        copy_seconds = timed(lambda: subprocess.run(copy, check=True, stdin=subprocess.DEVNULL))
        (local / "copied").unlink()
        os.sync()
        seconds = timed(lambda: client("file", "push", str(local / "big"), f"{name}/root/big"))
        size = f"test $(stat -c %s /root/big) = {BIG_MIB << 20}"
        wire.run_inside(place.daemon.wire, name, "sh", "-c", size)
        wire.run_inside(place.daemon.wire, name, "rm", "/root/big")
        self._bench.samples.measure("big-push-cp", place.subject.label, lambda: seconds / copy_seconds)
        return seconds


def _fill(folder: Path) -> None:
    for number in range(FILES):
        below = folder / f"d{number % _FOLDERS}"
        below.mkdir(parents=True, exist_ok=True)
        (below / f"f{number}").write_bytes(os.urandom(_SMALL))


def _fill_big(path: Path) -> None:
    part = os.urandom(1 << 20)
    with path.open("wb") as file:
        for _ in range(BIG_MIB):
            file.write(part)
