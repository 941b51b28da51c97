"""Clients that print lifecycle events, and do not say when they are connected."""

from __future__ import annotations

import select
import subprocess
from collections.abc import Iterator

from tests.support.daemon import Daemon

_NAME = "listened-to"


def heard(daemon: Daemon, monitor: subprocess.Popen[str]) -> Iterator[str]:
    """Wait until a client prints events, and return the lines about all that happens from now on."""
    assert monitor.stdout is not None
    while not select.select([monitor.stdout], [], [], 0.1)[0]:
        assert monitor.poll() is None, "the client has ended"
        daemon.do("POST", "/1.0/profiles", {"name": _NAME})
        daemon.do("DELETE", f"/1.0/profiles/{_NAME}")
    return (line for line in monitor.stdout if line.strip() and _NAME not in line)
