"""A daemon in a network namespace of its own, for tests that make networks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.daemon import Daemon
from tests.support.netbox import NetBox


@contextmanager
def boxed_daemon(log: Path | None = None) -> Iterator[Daemon]:
    """One with a pool and a usable default profile; fails for what it leaves, interfaces and rules too.

    `log` is for its log, where that cannot lie beside the state folder.
    """
    box = NetBox()
    try:
        before = set(box.links())
        daemon = Daemon(box=box)
        daemon.log = log or daemon.log
        try:
            daemon.start()
            daemon.make_defaults()
            yield daemon
        finally:
            problems = daemon.close()
        problems += box.leaks(before)
        assert not problems, "\n".join(["the daemon left behind or did wrong:", *problems])
    finally:
        box.close()
