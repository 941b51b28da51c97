"""What systemd in a container says of itself."""

from __future__ import annotations

import time

from tests.support.daemon import Daemon


def system_state(daemon: Daemon, name: str, seconds: float = 30) -> str:
    """Return what systemd in an instance says of itself once it has started; `no answer` after that time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended = daemon.lxc("exec", name, "--", "systemctl", "is-system-running", "--wait", check=False)
        if ended.stdout.strip() not in ("", "offline", "unknown"):
            return ended.stdout.strip()
        time.sleep(0.1)
    return "no answer"
