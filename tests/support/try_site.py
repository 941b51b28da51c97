"""A public site on a test's daemon: its image on the programs of this host, its process, and visitors."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from tests.support.api import Reply
from tests.support.daemon import Daemon
from tests.support.images import Image, build_with_init
from tests.support.nested import BIN, SHOWN
from tests.support.netbox import until
from tests.support.tls import free_address

ROOT = Path(__file__).resolve().parents[2]
TRY = ROOT / "scripts/try"
DOCKER_PROFILE = ROOT / "scripts/profiles/docker.yaml"
PATH = f"{BIN}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
IDS = b"root:65536:983040\n"
"""What `utsuwad check` recommends in an isolated container with nesting."""
USER = "nobody"
"""An account of every host."""
SECONDS = 120.0
_ASK_SECONDS = 3.0
"""Between two questions of a page for a turn."""


def shown() -> dict[str, dict[str, str]]:
    """Return devices that show this host's programs."""
    return {
        f"shown{number}": {"type": "disk", "source": str(folder), "path": str(folder), "readonly": "true"}
        for number, folder in enumerate(SHOWN)
    }


def make_image(daemon: Daemon, busybox: Image, folder: Path, docker: Image | None = None) -> None:
    """Make the image `try` as scripts/build-try-image does, but of a busybox on this host's programs.

    Without an image for it, the visitors' step with Docker can be shown, and not be done as it says.
    """
    more: dict[str, bytes | str | None] = {
        **dict.fromkeys(("var/lib", "var/lib/utsuwa", "var/log", "var/tmp", "var/cache", "seed")),
        **{name: f"usr/{name}" for name in ("lib", "lib64") if (Path("/usr") / name).exists()},
        "etc/subuid": IDS,
        "etc/subgid": IDS,
        "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\ndnsmasq:x:109:65534::/:/usr/sbin/nologin\n",
        "bin/prepare": (TRY / "prepare").read_bytes(),
        "seed/docker.yaml": DOCKER_PROFILE.read_bytes(),
    }
    seeds = {"busybox": busybox} | ({"docker": docker} if docker else {})
    for alias, image in seeds.items():
        more |= {
            f"seed/{alias}": None,
            f"seed/{alias}/metadata.tar.xz": image.metadata.read_bytes(),
            f"seed/{alias}/rootfs.squashfs": image.rootfs.read_bytes(),
        }
    init = (TRY / "init").read_text()
    daemon.import_image(build_with_init(folder, "visitor", init, more), alias="visitor")
    body = {
        "name": "building",
        "source": {"type": "image", "alias": "visitor"},
        "config": {"security.nesting": "true", "environment.PATH": PATH},
        "devices": shown(),
    }
    daemon.do("POST", "/1.0/instances", body)
    daemon.do("PUT", "/1.0/instances/building/state", {"action": "start"})
    words = ("/bin/prepare", "/seed/docker.yaml", *(f"/seed/{alias}" for alias in seeds))
    done = daemon.lxc("exec", "building", "--", *words, check=False, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    daemon.lxc("stop", "--force", "building")
    daemon.lxc("publish", "building", "--alias", "try", "--compression", "none")
    daemon.do("DELETE", "/1.0/instances/building")


def set_up(daemon: Daemon, folder: Path, **settings: object) -> None:
    """Run `utsuwad try init`, and allow the project the devices of the image; change settings.

    The settings are those of try.yaml, with underscores.
    """
    daemon.do("PATCH", "/1.0", {"config": {"core.https_address": free_address()}})
    done = run(daemon, "init", "--directory", str(folder), "--user", USER, "--data", str(folder / "data"))
    assert done.returncode == 0, done.stderr
    more = {"restricted.devices.disk": "allow", "restricted.devices.disk.paths": ",".join(map(str, SHOWN))}
    daemon.do("PATCH", "/1.0/projects/try", {"config": more})
    profile = daemon.get("/1.0/profiles/default?project=try")
    profile["config"]["environment.PATH"] = PATH
    profile["devices"] |= shown()
    daemon.do("PUT", "/1.0/profiles/default?project=try", profile)
    change_settings(folder, **settings)


def prepared(daemon: Daemon, busybox: Image, docker: Image | None = None, **settings: Any) -> Path:
    """Make the image, set a site up, and return its directory, which any user may pass through."""
    folder = daemon.home / "try"
    folder.mkdir()
    make_image(daemon, busybox, folder, docker)
    set_up(daemon, folder, **settings)
    return folder


def change_settings(folder: Path, **settings: object) -> None:
    file = folder / "try.yaml"
    found = yaml.safe_load(file.read_text())
    found |= {key.replace("_", "-"): value for key, value in settings.items()}
    file.write_text(yaml.safe_dump(found))


def run(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `utsuwad try` with arguments, as root of the host."""
    return subprocess.run(
        [sys.executable, "-m", "utsuwa.daemon.main", "try", *arguments],
        env=daemon.environment(UTSUWA_DIR=str(daemon.dir)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class Site:
    """A running site."""

    def __init__(self, daemon: Daemon, folder: Path) -> None:
        self.daemon = daemon
        self.folder = folder
        self.log = folder / "site.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, **settings: object) -> None:
        """Start it at a new address, and wait until it answers."""
        address, metrics = free_address(), free_address()
        change_settings(self.folder, listen=address, metrics=metrics, **settings)
        self.address, self.metrics = address, metrics
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "utsuwa.daemon.main", "try", "-v", "--directory", str(self.folder)],
                env=self.daemon.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until(self._answers, SECONDS)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()
        with contextlib.suppress(OSError):
            return self.visitor().send("GET", "/api/site").status == 200
        return False

    @property
    def pid(self) -> int:
        assert self._process is not None, "the site does not run"
        return self._process.pid

    def visitor(self) -> Visitor:
        return Visitor(self.address)

    def stop(self) -> None:
        """Stop it, if it runs; it must end well."""
        if self._process is not None:
            self._process.terminate()
            code = self._process.wait(SECONDS)
            self._process = None
            assert code == 0, self.log.read_text()

    def kill(self) -> None:
        assert self._process is not None, "the site does not run"
        self._process.kill()
        self._process.wait(SECONDS)
        self._process = None

    def containers(self) -> list[str]:
        """Return the names of the visitors' containers, whatever their state."""
        return [record["name"] for record in self.daemon.get("/1.0/instances?project=try&recursion=1")]

    def metric(self, name: str) -> float:
        """Return the value of a metric without labels."""
        connection = http.client.HTTPConnection(self.metrics, timeout=20)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        (line,) = [line for line in text.splitlines() if line.startswith(f"utsuwa_try_{name} ")]
        return float(line.rpartition(" ")[2])


class Visitor:
    """A browser at the site, which may do what no browser does."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.cookie = ""

    @property
    def own(self) -> dict[str, str]:
        """The headers of the site's own page."""
        headers = {"Origin": f"http://{self.address}", "Sec-Fetch-Site": "same-origin"}
        return headers | ({"Cookie": self.cookie} if self.cookie else {})

    def send(
        self, method: str, url: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Send exactly these headers, by default those of the page."""
        sent = dict(self.own if headers is None else headers)
        payload = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        if payload is not None:
            sent.setdefault("Content-Type", "application/json")
        connection = http.client.HTTPConnection(self.address, timeout=SECONDS)
        return Reply.of(connection, method, url, payload, sent)

    def begin(self, **headers: str) -> Reply:
        """Ask for a session, also again if no container became ready in time, and keep its cookie."""
        body = {"terms": "1", "language": "en"}
        end = time.monotonic() + SECONDS
        reply = self.send("POST", "/api/sessions", body, {**self.own, **headers})
        while reply.status == 503 and reply.json["code"] == "unavailable" and time.monotonic() < end:
            reply = self.send("POST", "/api/sessions", body, {**self.own, **headers})
        if reply.status == 201:
            self.cookie = reply.headers["set-cookie"].partition(";")[0]
        return reply

    def session(self) -> dict[str, Any]:
        found: dict[str, Any] = self.send("GET", "/api/session").json
        return found

    def ask_turn(self) -> dict[str, Any]:
        """Wait for the turn to run Docker, or say that it still is or will be needed."""
        reply = self.send("POST", "/api/session/turn")
        assert reply.status == 200, reply.body
        found: dict[str, Any] = reply.json
        return found

    def check(self, step: str) -> dict[str, Any]:
        reply = self.send("POST", f"/api/session/steps/{step}/check")
        assert reply.status == 200, reply.body
        found: dict[str, Any] = reply.json
        return found

    def terminal(self, query: str = "width=100&height=30", **headers: str) -> Terminal:
        return Terminal(self.address, f"/api/session/terminal?{query}", {**self.own, **headers})


@contextlib.contextmanager
def asking(*visitors: Visitor) -> Iterator[None]:
    """Have visitors ask for their turns all the time, as their pages do, so that they keep them."""
    over = threading.Event()

    def ask() -> None:
        while not over.wait(_ASK_SECONDS):
            for visitor in visitors:
                visitor.ask_turn()

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask)
        try:
            yield
        finally:
            over.set()
    asked.result()


class Terminal:
    """A terminal's websocket, on blocking sockets."""

    def __init__(self, address: str, url: str, headers: Mapping[str, str]) -> None:
        """Raises ConnectionRefusedError with the status if the site does not open it."""
        self._loop = asyncio.new_event_loop()
        self._session = self._loop.run_until_complete(_session())
        self.seen = ""
        try:
            self._socket = self._loop.run_until_complete(
                self._session.ws_connect(f"http://{address}{url}", headers=headers)
            )
        except aiohttp.WSServerHandshakeError as error:
            self.close()
            raise ConnectionRefusedError(error.status) from None

    def type(self, text: str) -> None:
        self._loop.run_until_complete(self._socket.send_bytes(text.encode()))

    def say(self, message: object) -> None:
        self._loop.run_until_complete(self._socket.send_json(message))

    def read_until(self, wanted: str, seconds: float = SECONDS) -> str:
        """Return all output until it contains a text."""
        end = time.monotonic() + seconds
        while wanted not in self.seen:
            assert time.monotonic() < end, f"{wanted!r} is not in the output:\n{self.seen}"
            message = self._receive(end - time.monotonic())
            assert message is not None, f"the terminal was closed after:\n{self.seen}"
            self.seen += message
        return self.seen

    def closed(self, seconds: float = SECONDS) -> int | None:
        """Return the code with which the site closes it."""
        while self._receive(seconds) is not None:
            continue
        return self._socket.close_code

    def _receive(self, seconds: float) -> str | None:
        try:
            message = self._loop.run_until_complete(self._socket.receive(max(seconds, 0.1)))
        except TimeoutError:
            return ""
        return message.data.decode(errors="replace") if message.type == aiohttp.WSMsgType.BINARY else None

    def close(self) -> None:
        self._loop.run_until_complete(self._session.close())
        self._loop.close()


async def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession()


@contextlib.contextmanager
def running(daemon: Daemon, folder: Path, **settings: object) -> Iterator[Site]:
    """Run a site, which leaves no container in the end."""
    site = Site(daemon, folder)
    try:
        site.start(**settings)
        yield site
    finally:
        site.stop()
    assert site.containers() == []
