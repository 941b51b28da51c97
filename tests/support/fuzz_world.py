"""What requests meet while they try to break a daemon, and how it is looked at afterwards."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import random
import re
import socket
import threading
import time
from collections import Counter, deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis.core.failures import FailureGroup

from tests.support.api import Reply, UnixConnection
from tests.support.daemon import Daemon
from tests.support.fuzz_requests import OPERATION, Known, Probe, Requests, variant

ANSWER_SECONDS = 30
SETTLE_SECONDS = 60
AHEAD = 20
"""Requests that are made while earlier ones are answered."""
VARIANTS = 3
"""Requests that follow each one, in which another part is spoiled."""
RENEWED_AFTER = 100
"""Requests, until what they have deleted is made again."""
DEVICES = {
    "root": {"type": "disk", "path": "/", "pool": "default"},
    "eth0": {"type": "nic", "nictype": "p2p", "name": "eth0"},
}
REFUSALS = (501, 507)
"""Statuses from 500 on that say what is not the daemon's fault: not in this version, no space."""


@dataclass
class Tally:
    """What became of the requests to one part of the API."""

    statuses: Counter[int] = field(default_factory=Counter)
    failures: int = 0

    def between(self, low: int, high: int) -> int:
        return sum(count for status, count in self.statuses.items() if low <= status < high)


class Fuzzer:
    """Sends requests to a daemon and keeps what is wrong with its answers."""

    def __init__(self, daemon: Daemon, image: Path, certificates: tuple[str, str], clients: int = 1) -> None:
        """`image` is the file of one; `certificates` are two in base64."""
        self.daemon = daemon
        self.clients = clients
        self.image = image
        self.certificates = certificates
        self.folder = daemon.home / "given"
        self.folder.mkdir()
        self.tallies: dict[str, Tally] = {}
        self.failures: list[str] = []
        self.slowest = (0.0, "")
        self._lock = threading.Lock()
        self._own = threading.local()
        self._connections: list[UnixConnection] = []
        self.furnish()
        description = daemon.api("GET", "/openapi.json").json
        known = Known(
            config_keys=_config_keys(daemon.get("/1.0/metadata/configuration")["configs"]),
            folder=str(self.folder),
            fingerprint=daemon.get("/1.0/images/aliases/busybox")["target"],
            certificate=certificates[1],
        )
        self.operation = ""
        self.known = known
        self.requests = Requests(description, known)
        self._name_what_there_is()

    def furnish(self) -> None:
        """Make what requests can meet, where it is not there (any more)."""
        daemon = self.daemon
        if not self._there("/1.0/images/aliases/busybox"):
            for image in daemon.get("/1.0/images?recursion=1"):
                daemon.do("DELETE", f"/1.0/images/{image['fingerprint']}")
            headers = {"Content-Type": "application/octet-stream", "X-LXD-aliases": "alias=busybox"}
            daemon.wait(daemon.api("POST", "/1.0/images", self.image.read_bytes(), headers=headers))
        wanted: dict[str, dict[str, Any]] = {
            "storage-pools": {"name": "spare", "driver": "dir"},
            "networks": {"name": "net0", "config": {"ipv6.address": "none"}},
            "profiles": {"name": "extra", "config": {"user.x": "1"}},
        }
        for kind, body in wanted.items():
            if not self._there(f"/1.0/{kind}/{body['name']}"):
                daemon.do("POST", f"/1.0/{kind}", body)
        if not daemon.get("/1.0/certificates"):
            daemon.do("POST", "/1.0/certificates", {"type": "client", "certificate": self.certificates[0]})
        daemon.do("PUT", "/1.0/profiles/default", {"devices": DEVICES})
        source = {"type": "image", "alias": "busybox"}
        for name in ("run", "off"):
            if not self._there(f"/1.0/instances/{name}"):
                body = {"name": name, "source": source, "start": name == "run"}
                made = daemon.api("POST", "/1.0/instances", body)
                if made.status == 202:  # else an earlier request makes one of this name at this moment
                    daemon.wait(made)

    def _there(self, url: str) -> bool:
        return self.daemon.api("GET", url).status == 200

    def works(self) -> None:
        """It answers, and what it is for works: a new container starts and runs a command."""
        self.daemon.get("/1.0")
        self.daemon.lxc("launch", "busybox", "after")
        assert self.daemon.lxc("exec", "after", "--", "echo", "well").stdout == "well\n"

    def _name_what_there_is(self) -> None:
        (certificate,) = self.daemon.get("/1.0/certificates?recursion=1")
        trusted, fingerprint = certificate["fingerprint"], self.known.fingerprint
        self.known.names |= {
            "instances": ["run", "run", "run", "off", "web", "a"],
            "profiles": ["default", "extra", "a", "web"],
            "networks": ["net0", "net0", "lo", "web", "a"],
            "storage-pools": ["default", "default", "spare", "a"],
            "projects": ["default"],
            "certificates": [trusted, trusted[:12]],
            "images": [fingerprint, fingerprint[:12], fingerprint[:1]],
            "aliases": ["busybox", "a/b", "c"],
            "volumes": ["container", "container", "image", "custom", "virtual-machine"],
            "{type}": ["run", "off", fingerprint],
            "logs": ["lxc.log", "lxc.conf", "console.log", "lxc.log.old"],
            "exec-output": ["exec_a.stdout"],
            "operations": [OPERATION],
        }

    def attack(self, count: int, number: str) -> None:
        """Send `count` requests that depend on `number` alone; then all is cleaned up and made anew."""
        sent = 0
        under_way: deque[Future[None]] = deque()

        def wait(left: int) -> None:
            while len(under_way) > left:
                under_way.popleft().result()

        @seed(number)
        @settings(
            max_examples=-(-count // (1 + VARIANTS)),
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )
        @given(self.requests.probe())
        def one(probe: Probe) -> None:
            nonlocal sent
            chance = random.Random(f"{number}:{sent}")
            variants = (variant(probe, chance) for _ in range(VARIANTS))
            for each in itertools.islice(itertools.chain([probe], variants), count - sent):
                if sent % RENEWED_AFTER == 0:
                    wait(0)
                    self.furnish()
                sent += 1
                wait(AHEAD)
                under_way.append(threads.submit(self.send, each))

        with ThreadPoolExecutor(self.clients) as threads:
            one()
            wait(0)

    def send(self, probe: Probe) -> None:
        began = time.monotonic()
        try:
            reply = self._ask(probe)
        except (OSError, http.client.HTTPException) as error:
            self._note(probe, 0, f"{probe}: no answer ({error!r})")
            return
        with self._lock:
            self.slowest = max(self.slowest, (time.monotonic() - began, str(probe)[:300]))
        wrong = problem(probe, reply)
        self._note(probe, reply.status, wrong and f"{probe}: {reply.status}: {wrong}: {reply.body[:400]!r}")
        if reply.status == 202:
            self.operation = reply.operation.rpartition("/")[2]
            for secret in ((reply.metadata.get("metadata") or {}).get("fds") or {}).values():
                self._come_and_go(f"{reply.operation}/websocket?secret={secret}")

    def _note(self, probe: Probe, status: int, failure: str) -> None:
        with self._lock:
            tally = self.tallies.setdefault(probe.area, Tally())
            tally.statuses[status] += 1
            if failure:
                tally.failures += 1
                self.failures.append(failure)

    def _come_and_go(self, url: str) -> None:
        """Connect a websocket and be gone, or what waits for it would wait for half a minute."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(ANSWER_SECONDS)
            client.connect(str(self.daemon.socket))
            client.sendall(upgrade(url))
            head = client.recv(4096)
            # The operation may have ended already.
            if not head.startswith((b"HTTP/1.1 101 ", b"HTTP/1.1 403 ", b"HTTP/1.1 404 ")):
                self.failures.append(f"no websocket at {url}: {head!r}")

    def _ask(self, probe: Probe) -> Reply:
        connection = self._connection()
        try:
            url = probe.url.replace(OPERATION, self.operation)
            # One that refuses a request early may not wait for its body; its answer is there all the same.
            with contextlib.suppress(BrokenPipeError):
                connection.request(probe.method, url, probe.body, dict(probe.headers))
            answer = connection.getresponse()
            content = answer.read()
        except BaseException:
            connection.close()
            raise
        return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, content)

    def _connection(self) -> UnixConnection:
        """The thread's own; one that was closed connects again by itself."""
        if not hasattr(self._own, "connection"):
            self._own.connection = UnixConnection(self.daemon.socket, ANSWER_SECONDS)
            self._connections.append(self._own.connection)
        connection: UnixConnection = self._own.connection
        return connection

    def close(self) -> None:
        while self._connections:
            self._connections.pop().close()

    def settle(self) -> None:
        """Delete all that there is, as any user could; then nothing is at work any more."""
        daemon = self.daemon
        self.close()
        daemon.do("PUT", "/1.0", {"config": {}})
        deadline = time.monotonic() + SETTLE_SECONDS
        while running := daemon.get("/1.0/operations?recursion=1").get("running"):
            assert time.monotonic() < deadline, f"operations that do not end: {running}"
            for token in (operation for operation in running if operation["class"] == "token"):
                daemon.do("DELETE", f"/1.0/operations/{token['id']}")  # it waits for its use
            # What waits for an end that would never come by itself is overtaken by a forced stop.
            body = {"state": {"action": "stop", "force": True, "timeout": 30}}
            daemon.wait(daemon.api("PUT", "/1.0/instances", body))
            time.sleep(0.1)
        for certificate in daemon.get("/1.0/certificates?recursion=1"):
            daemon.do("DELETE", f"/1.0/certificates/{certificate['fingerprint']}")
        daemon.clean()

    def table(self) -> str:
        lines = ["| requests to | tries | done | refused | failures |", "| --- | ---: | ---: | ---: | ---: |"]
        for area, tally in sorted(self.tallies.items()):
            tries = sum(tally.statuses.values())
            done, refused = tally.between(100, 400), tally.between(400, 500)
            refused += sum(tally.statuses[status] for status in REFUSALS)
            lines.append(f"| {area} | {tries} | {done} | {refused} | {tally.failures} |")
        return "\n".join(lines) + "\n"


def upgrade(url: str) -> bytes:
    """A request for a websocket."""
    return (
        f"GET {url} HTTP/1.1\r\nHost: utsuwa\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    ).encode()


def problem(probe: Probe, reply: Reply) -> str:
    """What is wrong with an answer; empty where nothing is."""
    if reply.status >= 500 and reply.status not in REFUSALS:
        return "a fault of the server's"
    described = probe.operation.definition.raw["responses"]
    if "content" not in described.get(str(reply.status), described["default"]):
        return ""  # the content itself, without an envelope
    if 300 <= reply.status < 400 and not reply.body and "location" in reply.headers:
        return ""  # the way to another address
    if reply.headers.get("content-type") != "application/json":
        return "not JSON"
    response = schemathesis.Response(
        status_code=reply.status,
        headers={name: [value] for name, value in reply.headers.items()},
        content=reply.body,
        request=Mock(),
        elapsed=0.0,
        verify=False,
    )
    try:
        probe.operation.validate_response(response)
    except (FailureGroup, AssertionError) as error:
        return f"not as described ({' '.join(str(error).split())[:200]})"
    return ""


def _config_keys(configs: dict[str, dict[str, Any]]) -> dict[str, dict[str, str]]:
    """By kind of object its keys with their types; what drivers of pools and devices add is put together."""
    found: dict[str, dict[str, str]] = {}
    for kind, groups in configs.items():
        keys = found.setdefault("storage" if kind.startswith("storage_") else kind, {})
        for group in groups.values():
            for key in group["keys"]:
                keys |= {name: shown["type"] for name, shown in key.items() if name != "source"}
    return found


def memory(pid: int) -> int:
    """Bytes (PSS) of a daemon and the helpers below it, without what runs in containers."""
    total, queue = 0, [pid]
    while queue:
        here = Path("/proc", str(queue.pop()))
        with contextlib.suppress(OSError):
            if (here / "cmdline").read_bytes().startswith(b"[lxc monitor]"):
                continue
            found = re.search(r"^Pss:\s+(\d+) kB$", (here / "smaps_rollup").read_text(), re.MULTILINE)
            total += int(found[1]) * 1024 if found else 0
            for task in (here / "task").iterdir():
                queue += map(int, (task / "children").read_text().split())
    return total
