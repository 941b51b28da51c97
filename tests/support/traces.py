"""Comparison of the complete state of a daemon: rows, files and objects on the host."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields

from tests.support import leaks
from tests.support.daemon import Daemon
from tests.support.netbox import until

BEGINS = 2
"""Seconds within which the unpacking of a new image begins."""
PATIENCE = 30
"""Seconds for what goes by itself: a process that is just ending, a loop device."""


@dataclass(frozen=True)
class Traces:
    """A snapshot of the state; equal ones mean that nothing was changed or left behind."""

    rows: frozenset[str]
    files: frozenset[str]
    mounts: frozenset[str]
    loops: frozenset[tuple[str, str]]
    processes: frozenset[tuple[int, str]]

    @classmethod
    def of(cls, daemon: Daemon) -> Traces:
        return cls(
            frozenset(_rows(daemon)),
            frozenset(_files(daemon)),
            frozenset(leaks.mounts_below(daemon.home)),
            frozenset(leaks.loop_devices(daemon.home)),
            frozenset(p for p in leaks.processes_of(daemon.home) if "utsuwa.host.helper" not in p[1]),
        )

    def differences(self, other: Traces) -> list[str]:
        """Return one line for each item that only one of the two has."""
        found = []
        for name in (field.name for field in fields(self)):
            mine, theirs = getattr(self, name), getattr(other, name)
            found += [f"{name}: gone: {item}" for item in sorted(mine - theirs)]
            found += [f"{name}: new: {item}" for item in sorted(theirs - mine)]
        return found


def _rows(daemon: Daemon) -> Iterator[str]:
    path = daemon.dir / "database" / "utsuwa.db"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (table,) in names:
            if table != "sqlite_sequence":  # ids that were given once
                first = 1 if table.endswith(("_config", "_profiles")) else 0  # nothing refers to their ids
                for row in connection.execute(f'SELECT * FROM "{table}"'):
                    yield f"{table} {row[first:]}"


def _files(daemon: Daemon) -> Iterator[str]:
    """Return all paths in the state directory, without the contents of mounted root file systems."""
    for top, folders, files in os.walk(daemon.dir):
        if top == str(daemon.dir / "database"):
            continue
        # The note that an unpacked image is still on its way to the disk goes by itself.
        yield from (f"{top}/{name}" for name in (*folders, *files) if name != "unsynced")
        folders[:] = [name for name in folders if not os.path.ismount(f"{top}/{name}")]


@contextmanager
def nothing_changes(daemon: Daemon, *, but: str = "/nothing/") -> Iterator[None]:
    """Fail if the block changes a row, or leaves a file, a mount, a loop device or a process.

    Files with `but` in their path may change.
    """
    _wait_for_unpacking(daemon)
    daemon.get("/1.0/warnings")  # waits until those of the daemon's start are stored
    before = Traces.of(daemon)
    yield
    deadline = time.monotonic() + PATIENCE
    while found := [line for line in before.differences(Traces.of(daemon)) if but not in line]:
        assert time.monotonic() < deadline, "\n".join(["the daemon changed or left:", *found])
        time.sleep(0.05)


def _wait_for_unpacking(daemon: Daemon) -> None:
    """Wait until unpacking a new image in the background has begun and ended."""
    young = [time.time() - path.stat().st_ctime for path in (daemon.dir / "images").iterdir()]
    time.sleep(max(0.0, BEGINS - min(young, default=BEGINS)))
    until(lambda: not any(daemon.dir.glob("storage-pools/*/images/.new-*")), seconds=60)
