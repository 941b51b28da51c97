"""A container in which another daemon runs, on the programs of this host."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from tests.support.daemon import Daemon

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
SHOWN = (Path("/usr"), ROOT)
"""Directories of the host that are shown inside."""
PREPARE = """
set -e
cd /
for name in lib lib64; do [ ! -e /usr/$name ] || ln -sf usr/$name /$name; done
grep -q dnsmasq /etc/passwd || echo dnsmasq:x:109:65534::/:/usr/sbin/nologin >>/etc/passwd
mkdir -p /var/tmp /var/log /var/cache
"""
ENVIRONMENT = (
    *("--env", f"PATH={BIN}:/usr/sbin:/usr/bin:/sbin:/bin"),
    *("--env", "PYTHONDONTWRITEBYTECODE=1"),
)
_SUGGESTED = "from utsuwa.security import idmap; print(idmap.suggested())"
START_DAEMON = f"""
[ -e /etc/subuid ] || python -c {shlex.quote(_SUGGESTED)} >/etc/subuid
cp /etc/subuid /etc/subgid
setsid utsuwad --debug --logfile /var/log/utsuwad </dev/null >/dev/null 2>&1 &
utsuwad waitready --timeout 60
"""
KILL_DAEMON = """
pid=$(cat /var/lib/utsuwa/utsuwa.lock)
kill -9 $pid
while kill -0 $pid 2>/dev/null; do sleep 0.05; done
"""


class Outer:
    """A busybox container with this host's /usr, in whose directory of its own a daemon has its state."""

    def __init__(self, daemon: Daemon, name: str, **config: str) -> None:
        self.daemon = daemon
        self.name = name
        devices = {
            f"shown{number}": {"type": "disk", "source": str(folder), "path": str(folder), "readonly": "true"}
            for number, folder in enumerate(SHOWN)
        }
        devices["state"] = {"type": "disk", "source": "instance:utsuwa", "path": "/var/lib/utsuwa"}
        body = {
            "name": name,
            "source": {"type": "image", "alias": "busybox"},
            "config": {"security.nesting": "true"} | {k.replace("__", "."): v for k, v in config.items()},
            "devices": devices,
        }
        daemon.do("POST", "/1.0/instances", body)
        daemon.do("PUT", f"/1.0/instances/{name}/state", {"action": "start"})
        self.run(PREPARE)

    def run(self, script: str) -> str:
        """Run a script of the shell inside and return what it prints. Raises AssertionError if it fails."""
        done = self.attempt(script)
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        return done.stdout

    def attempt(self, script: str) -> subprocess.CompletedProcess[str]:
        return self.daemon.lxc("exec", self.name, *ENVIRONMENT, "--", "sh", "-c", script, check=False)

    def start_daemon(self) -> None:
        """Give root ids for containers, if it has none, and start the daemon of this container."""
        self.run(START_DAEMON)

    def kill_daemon(self) -> None:
        self.run(KILL_DAEMON)
