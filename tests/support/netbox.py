"""Network namespaces for tests, so that they do not affect the machine's network.

Each has a mount namespace as well, because /sys shows the network namespace in which it was mounted.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support import isolation

_SETUP = f"{isolation.SETUP}\necho ready\nexec sleep infinity\n"


class NetBox:
    """Kept by a process that does nothing else; `prefix` before a command runs it inside."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "--propagation", "slave", "sh", "-c", _SETUP],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n", "the network namespace was not made"

    @property
    def pid(self) -> int:
        return self._holder.pid

    @property
    def prefix(self) -> tuple[str, ...]:
        return ("nsenter", f"--target={self.pid}", "--net", "--mount", "--")

    def run(self, *argv: str, check: bool = True, input: str | None = None) -> str:
        """Run a program inside and return stdout and stderr."""
        done = subprocess.run(
            [*self.prefix, *argv],
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        if check:
            assert done.returncode == 0, f"{argv} ended with {done.returncode}: {done.stdout}"
        return done.stdout

    def succeeds(self, *argv: str) -> bool:
        done = subprocess.run(
            [*self.prefix, *argv], capture_output=True, stdin=subprocess.DEVNULL, timeout=60
        )
        return done.returncode == 0

    def links(self) -> list[str]:
        return [link["ifname"] for link in json.loads(self.run("ip", "-j", "link"))]

    def addresses(self, interface: str) -> set[str]:
        """Global addresses with their prefix lengths."""
        shown = json.loads(self.run("ip", "-j", "addr", "show", "dev", interface))
        found = [a for link in shown for a in link.get("addr_info", []) if a.get("scope") == "global"]
        return {f"{a['local']}/{a['prefixlen']}" for a in found}

    def tables(self) -> list[str]:
        return [o["table"]["name"] for o in self.nft("tables") if "table" in o]

    def nft(self, *what: str) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = json.loads(self.run("nft", "-j", "list", *what))["nftables"]
        return listed

    def leaks(self, before: set[str]) -> list[str]:
        """Return new interfaces and tables."""
        found = [f"network interface: {name}" for name in sorted(set(self.links()) - before)]
        return found + [f"firewall table: {name}" for name in self.tables()]

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()
        if self._holder.stdout is not None:
            self._holder.stdout.close()


@contextmanager
def outside(box: NetBox, other: NetBox, address: str, peer: str) -> Iterator[None]:
    """Join two namespaces by a veth pair: `address` (with prefix) in `box`, `peer` in `other`."""
    box.run("ip", "link", "add", "outside0", "type", "veth", "peer", "name", "inside0")
    box.run("ip", "link", "set", "inside0", "netns", str(other.pid))
    box.run("ip", "addr", "add", address, "dev", "outside0")
    box.run("ip", "link", "set", "outside0", "up")
    other.run("ip", "addr", "add", peer, "dev", "inside0")
    other.run("ip", "link", "set", "inside0", "up")
    try:
        yield
    finally:
        box.run("ip", "link", "del", "outside0", check=False)


def until(condition: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


def process_ended(pid: int) -> bool:
    return not Path("/proc", str(pid)).exists()
