"""What systemd in a container says of itself."""

from __future__ import annotations

import time

from tests.support.daemon import Daemon


def system_state(daemon: Daemon, name: str, seconds: float = 120) -> str:
    """Return what systemd in an instance says of itself once it has started; `no answer` after that time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        words = ("exec", name, "--", "systemctl", "is-system-running", "--wait")
        ended = daemon.lxc(*words, check=False, timeout=seconds)
        if ended.stdout.strip() not in ("", "offline", "unknown"):
            return ended.stdout.strip()
        time.sleep(0.1)
    return "no answer"
