"""A container that installs: without a network, with the host's programs, read-only.

It is an ordinary unprivileged, ephemeral instance whose root file system is empty. It ends when the client
has gone, whatever happens to that, and the daemon deletes it then.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time

from utsuwa.cli import streams
from utsuwa.cli.errors import CommandFailed
from utsuwa.cli.remote_files import Owner, RemoteFiles
from utsuwa.client.errors import ApiError
from utsuwa.client.http import FileBody
from utsuwa.client.server import path_to

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from utsuwa.cli.session import Session
    from utsuwa.client.server import Server

_SHOWN = ("/usr", "/usr/bin", "/usr/sbin", "/usr/lib", "/usr/lib64")
"""Directories of the server's host, whose /usr is merged: those below /usr are shown at the top as well."""
_INIT = "/usr/bin/sleep 6h"
"""Longer than any build; the words of `lxc.init.cmd` cannot have spaces."""
_ENTER = """\
# The client has gone when its end of the standard input is closed: power off.
exec 4<&0 </dev/null
setsid sh -c 'cat; exec python3 -c "import ctypes; ctypes.CDLL(None).reboot(0x4321FEDC)"' \\
    <&4 >/dev/null 2>&1 &
exec 4<&-
mkdir -p /etc/apt/apt.conf.d /root /tmp /kit
chmod 1777 /tmp
printf '%s\\n' root:x:0:0:root:/root:/bin/sh _apt:x:42:65534::/nonexistent:/usr/sbin/nologin >/etc/passwd
printf '%s\\n' root:x:0: nogroup:x:65534: >/etc/group
tar -xf /kit.tar -C /kit
rm /kit.tar
exec bash /kit/install.sh /kit
"""
_KIT = "/kit.tar"
_NOT_FOUND = 404
_TRIES, _TRY_SECONDS = 100, 0.1
"""Of deleting it, while the server is doing that itself."""
_LAST_LINES = 20


class Container:
    """A container on a server. Methods raise ApiError, CommandFailed."""

    def __init__(self, session: Session, server: Server, name: str) -> None:
        self._session = session
        self._server = server
        self._name = name

    def install(self, kit: str, target: str, log: str) -> None:
        """Install from a packed kit and write the root file system to a file; its messages go to `log`."""
        with open(kit, "rb") as file:
            body = FileBody(file.fileno(), os.path.getsize(kit), lambda _: None)
            RemoteFiles(self._server, self._name).push(_KIT, body, Owner(0, 0, 0o600))
        status = self._run(target, log)
        if status:
            with open(log, encoding="utf-8", errors="replace") as file:
                raise CommandFailed(failure(file.read()))

    def _run(self, target: str, log: str) -> int:
        body = {
            "command": ["/usr/bin/bash", "-ec", _ENTER],
            "wait-for-websocket": True,
            "interactive": False,
            "environment": {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/"},
            "cwd": "/",
            "user": 0,
            "group": 0,
        }
        operation = self._server.post(path_to("instances", self._name, "exec"), body)
        reader, writer = os.pipe()
        try:
            with open(target, "wb") as output, open(log, "wb") as messages:
                descriptors = (reader, output.fileno(), messages.fileno())
                streams.pump(self._server, operation, descriptors, forward=())
        finally:
            os.close(reader)
            os.close(writer)
        record = self._server.get(f"/1.0/operations/{operation['id']}/wait")
        status = (record.get("metadata") or {}).get("return")
        if status is None:
            raise CommandFailed(record["err"] or "The installation was interrupted by the server")
        return int(status)

    def remove(self) -> None:
        """Stop it, upon which the server deletes it, and wait until it is gone. Raises ApiError."""
        url = path_to("instances", self._name)
        body = {"action": "stop", "timeout": -1, "force": True, "stateful": False}
        with contextlib.suppress(ApiError):  # it has ended
            self._session.settle(self._server, self._server.put(f"{url}/state", body))
        for _ in range(_TRIES):
            try:
                self._session.settle(self._server, self._server.delete(url))
            except ApiError as error:
                if error.code == _NOT_FOUND:
                    return
            time.sleep(_TRY_SECONDS)
        self._server.delete(url)


def failure(said: str) -> str:
    """Return the reason of a failed installation: what it has stated, or else its last messages."""
    lines = said.rstrip().splitlines()
    for number, line in enumerate(lines):
        if line.startswith("utsuwa: "):
            details = [text for text in lines[number + 1 :] if text.startswith("    ")]
            return "\n".join((line.removeprefix("utsuwa: "), *details))
    told = [line for line in lines if not line.startswith("I: ")]
    return "\n".join(("The installation failed:", *told[-_LAST_LINES:]))


@contextlib.contextmanager
def started(session: Session, server: Server, name: str, pool: str) -> Iterator[Container]:
    """Create and start a container for the block, and remove it. Raises CommandFailed."""
    container = Container(session, server, name)
    body = {
        "name": name,
        "description": "Builds an image; deleted at the end",
        "source": {"type": "none"},
        "profiles": [],
        "ephemeral": True,
        "start": True,
        "config": {"raw.lxc": f"lxc.init.cmd = {_INIT}"},
        "devices": {"root": {"type": "disk", "path": "/", "pool": pool or _pool(server)}} | _devices(),
    }
    try:
        try:
            session.wait(server, server.post("/1.0/instances", body), "Starting a container")
        except ApiError as error:
            raise CommandFailed(
                f"The container that installs the packages cannot be started: {error}\n"
                "It shows the /usr of the server's host, which restricted users and projects may not use"
            ) from error
        yield container
    finally:
        with _undisturbed():
            container.remove()


def _devices() -> dict[str, dict[str, str]]:
    shown = {source.replace("/", "-").strip("-"): source for source in _SHOWN}
    return {
        name: {
            "type": "disk",
            "source": source,
            "path": source.removeprefix("/usr") or source,
            "readonly": "true",
            "required": "false" if source == "/usr/lib64" else "true",
        }
        for name, source in shown.items()
    }


def _pool(server: Server) -> str:
    """Return the pool of the default profile's root disk, or any other. Raises CommandFailed."""
    devices: dict[str, Any] = {}
    with contextlib.suppress(ApiError):
        devices = server.get(path_to("profiles", "default"))["devices"]
    for device in devices.values():
        if device.get("type") == "disk" and device.get("path") == "/" and device.get("pool"):
            return str(device["pool"])
    pools = server.get("/1.0/storage-pools")
    if not pools:
        raise CommandFailed("The server has no storage pool: create one (`utsuwa storage create`)")
    return str(pools[0]).rsplit("/", 1)[-1]


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore signals that would end the process, while it cleans up."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
