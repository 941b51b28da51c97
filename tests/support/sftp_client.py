"""A client of SFTP that sends packets as a test wants them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support import sftp_bridge
from tests.support.daemon import Daemon
from utsuwa.instances.files import sftp_packets as packets
from utsuwa.instances.files.sftp_packets import Reader, Status, Type


class Client:
    """A connection that sends packets as a test wants them."""

    def __init__(self, daemon: Daemon, url: str) -> None:
        self.socket = sftp_bridge.connect(str(daemon.socket), url)
        self.socket.settimeout(20)
        self.file = self.socket.makefile("rb")

    def send(self, kind: int, *parts: bytes) -> Reader | None:
        """Send a packet and return its reply, from its type on; None if the server has disconnected."""
        body = b"".join(parts)
        self.socket.sendall(packets.number(len(body) + 1) + bytes((kind,)) + body)
        return self.receive()

    def receive(self) -> Reader | None:
        try:
            header = self.file.read(4)
        except ConnectionError:
            return None
        return Reader(self.file.read(int.from_bytes(header, "big"))) if header else None

    def status(self, kind: int, *parts: bytes) -> Status:
        """Send a request and return the status in its reply."""
        reply = self.send(kind, packets.number(7), *parts)
        assert reply is not None
        assert (reply.byte(), reply.number()) == (Type.STATUS, 7)
        return Status(reply.number())

    def open(self, path: str, flags: int = packets.READ) -> bytes:
        reply = self.send(
            Type.OPEN, packets.number(7), packets.string(path), packets.number(flags), packets.number(0)
        )
        assert reply is not None
        assert (reply.byte(), reply.number()) == (Type.HANDLE, 7)
        return reply.string()

    def close(self) -> None:
        self.file.close()
        self.socket.close()


@contextmanager
def connected(daemon: Daemon, url: str) -> Iterator[Client]:
    client = Client(daemon, url)
    try:
        yield client
    finally:
        client.close()


@contextmanager
def mounted_root(daemon: Daemon, pool: str, name: str) -> Iterator[Path]:
    """The root file system of a stopped instance, which a client of SFTP keeps mounted meanwhile."""
    with connected(daemon, f"/1.0/instances/{name}/sftp") as client:
        client.open("/bin/busybox")
        yield Path(f"/proc/{daemon.pid}/root{daemon.dir}/storage-pools/{pool}/containers/{name}/rootfs")
