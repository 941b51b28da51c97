"""REST requests over a unix socket on a connection that stays open, as a client library makes them."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

SECONDS = 90
"""How long one request may take."""
IDLE_SECONDS = 10
"""After which a connection is made anew: the peers close one that nobody used for half a minute."""


class WireError(Exception):
    """The daemon refused, or an operation failed; the message is the daemon's."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=SECONDS)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


class Wire:
    """One connection; not for several threads at once. A context manager that closes it."""

    def __init__(self, path: Path) -> None:
        self._connection = _UnixConnection(path)
        self._used = time.monotonic()

    def ask(self, method: str, url: str, body: object = None) -> dict[str, Any]:
        """The envelope of a successful answer. Raises WireError with the daemon's sentence, or OSError."""
        payload = None if body is None else json.dumps(body).encode()
        _, content = self._exchange(method, url, payload, {"Content-Type": "application/json"})
        reply: dict[str, Any] = json.loads(content)
        if reply["type"] == "error":
            raise WireError(f"{method} {url}: {reply['error']}")
        return reply

    def _exchange(
        self, method: str, url: str, payload: bytes | None, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        """The status and the body of the answer."""
        if time.monotonic() - self._used > IDLE_SECONDS:
            self._connection.close()
        try:
            self._connection.request(method, url, payload, headers)
            answer = self._connection.getresponse()
            content = answer.read()
        except (http.client.HTTPException, OSError):
            self._connection.close()
            raise
        self._used = time.monotonic()
        return answer.status, content

    def get(self, url: str) -> Any:
        """The metadata of a GET."""
        return self.ask("GET", url)["metadata"]

    def do(self, method: str, url: str, body: object = None) -> dict[str, Any]:
        """Send, wait for the operation where there is one, and return its metadata."""
        reply = self.ask(method, url, body)
        if reply["type"] != "async":
            return {}
        ended = self.get(f"{reply['operation']}/wait")
        if ended["status_code"] != 200:
            raise WireError(f"{method} {url}: {ended['err']}")
        return ended["metadata"] or {}

    def push(self, name: str, path: str, content: bytes, headers: dict[str, str]) -> None:
        """Write a file of an instance."""
        status, answer = self._exchange("POST", _file_url(name, path), content, headers)
        if status != 200:
            raise WireError(f"push of {path}: {answer.decode(errors='replace')}")

    def pull(self, name: str, path: str) -> bytes:
        """Read a file of an instance."""
        status, answer = self._exchange("GET", _file_url(name, path), None, {})
        if status != 200:
            raise WireError(f"pull of {path}: {answer.decode(errors='replace')}")
        return answer

    def metrics(self) -> str:
        """The metrics of running instances, in the text format of Prometheus."""
        status, answer = self._exchange("GET", "/1.0/metrics", None, {})
        if status != 200:
            raise WireError(f"metrics: {answer.decode(errors='replace')}")
        return answer.decode()

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _file_url(name: str, path: str) -> str:
    return f"/1.0/instances/{name}/files?path={path}"


def timed(action: Callable[[], object]) -> float:
    """Seconds that the action takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


# ---- instances


def create(wire: Wire, name: str, image: str, pool: str) -> None:
    """A stopped container of the image with its root disk on the pool."""
    devices = {"root": {"type": "disk", "path": "/", "pool": pool}}
    body = {"name": name, "source": {"type": "image", "alias": image}, "devices": devices}
    wire.do("POST", "/1.0/instances", body)


def set_state(wire: Wire, name: str, action: str) -> None:
    """`start`, `stop` or `restart`; never gracefully."""
    wire.do("PUT", f"/1.0/instances/{name}/state", {"action": action, "force": True, "timeout": 30})


def check_running(wire: Wire, *names: str) -> None:
    """Raise WireError where one of the instances does not run: what is measured on it would mean nothing."""
    for name in names:
        status = wire.get(f"/1.0/instances/{name}")["status"]
        if status != "Running":
            raise WireError(f"{name} is {status.lower()} and should be running")


def pid_of(wire: Wire, name: str) -> int:
    """The host's pid of a running instance's init."""
    pid: int = wire.get(f"/1.0/instances/{name}/state")["pid"]
    return pid


def remove(wire: Wire, name: str) -> None:
    """Stop by force where it runs, and delete."""
    if wire.get(f"/1.0/instances/{name}")["status"] != "Stopped":
        set_state(wire, name, "stop")
    wire.do("DELETE", f"/1.0/instances/{name}")


def run_inside(wire: Wire, name: str, *argv: str) -> None:
    """A command without websockets; raises WireError where it does not end with 0."""
    body = {"command": list(argv), "wait-for-websocket": False, "interactive": False}
    code = wire.do("POST", f"/1.0/instances/{name}/exec", body).get("return")
    if code != 0:
        raise WireError(f"{' '.join(argv)} in {name} ended with {code}")


# Until systemd has ended its boot, whatever of it can be asked before; 10 tells a degraded one.
BOOTED = """
until state=$(systemctl is-system-running --wait 2>&1); [ "$state" = running ] || [ "$state" = degraded ]
do sleep 0.02; done
[ "$state" = running ] || exit 10
"""


def await_systemd(wire: Wire, name: str) -> str:
    """Wait inside for the end of the boot; returns `running` or `degraded`."""
    body = {"command": ["sh", "-c", BOOTED], "wait-for-websocket": False, "interactive": False}
    code = wire.do("POST", f"/1.0/instances/{name}/exec", body).get("return")
    match code:
        case 0:
            return "running"
        case 10:
            return "degraded"
        case _:
            raise WireError(f"waiting for systemd in {name} ended with {code}")


def await_address(wire: Wire, name: str, seconds: float = 30) -> None:
    """Wait until the daemon shows a global IPv4 address."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        network = wire.get(f"/1.0/instances/{name}/state")["network"] or {}
        addresses = [a for interface in network.values() for a in interface["addresses"] or ()]
        if any(a["family"] == "inet" and a["scope"] == "global" for a in addresses):
            return
        time.sleep(0.02)
    raise WireError(f"{name} has no address after {seconds} s")


def settle(wire: Wire, name: str, seconds: float = 8) -> None:
    """Wait until a container that boots has become idle, so that its boot does not slow the next measure."""
    deadline = time.monotonic() + seconds
    before = -1
    while time.monotonic() < deadline:
        used = int(wire.get(f"/1.0/instances/{name}/state")["cpu"]["usage"])
        if before >= 0 and used - before < 5_000_000:  # ns of 0.25 s
            return
        before = used
        time.sleep(0.25)


def pull_from(near: Wire, address: str, offer: dict[str, Any]) -> dict[str, Any]:
    """Return the source of an instance that another daemon pulls, given the reply to its offer."""
    return {
        "type": "migration",
        "mode": "pull",
        "operation": f"https://{address}{offer['operation']}",
        "certificate": near.get("/1.0")["environment"]["certificate"],
        "secrets": offer["metadata"]["metadata"],
    }
