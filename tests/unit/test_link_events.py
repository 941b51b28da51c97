"""What netlink's messages say of interfaces, and waiting for those that are to be ports."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utsuwa.host.network import link_events
from utsuwa.host.network.link_events import LinkEvents, changed
from utsuwa.networks import ports_watch
from utsuwa.networks.ports_watch import PortsWatch


def attribute(kind: int, data: bytes) -> bytes:
    text = struct.pack("=HH", 4 + len(data), kind) + data
    return text + bytes(-len(text) % 4)


def message(kind: int, body: bytes) -> bytes:
    text = struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body
    return text + bytes(-len(text) % 4)


def link(name: str, master: int | None = None, kind: int = 16) -> bytes:
    attributes = attribute(3, name.encode() + b"\0")
    if master is not None:
        attributes += attribute(10, struct.pack("=I", master))
    return message(kind, struct.pack("=BxHiII", 0, 1, 7, 0, 0) + attributes)


def test_interfaces_without_a_master_are_reported() -> None:
    assert list(changed(link("eth5") + link("port", master=3) + link("gone", kind=17) + link("x"))) == [
        "eth5",
        "x",
    ]


def test_an_interface_that_loses_an_address_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "if_indextoname", {7: "eth5"}.__getitem__)
    body = struct.pack("=BBBBi", 2, 24, 0, 0, 7)
    assert list(changed(message(21, body) + message(20, body))) == ["eth5"]


@given(st.lists(st.binary(max_size=80) | st.builds(link, st.text("ab", max_size=15))).map(b"".join))
def test_any_bytes_are_read(messages: bytes) -> None:
    assert all(isinstance(name, str) for name in changed(messages))


class Kernel:
    """A socket that gives what it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ours, self.kernels = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.ours.setblocking(False)
        monkeypatch.setattr(link_events, "_open", lambda: self.ours)


async def test_all_current_listeners_are_notified(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, links = Kernel(monkeypatch), LinkEvents()
    first: list[Any] = []
    second: list[Any] = []
    links.listen(first.append)
    links.listen(second.append)
    kernel.kernels.send(link("eth5"))
    kernel.kernels.send(link("eth5"))
    await asyncio.sleep(0.02)
    links.leave(first.append)
    kernel.kernels.send(link("eth6"))
    await asyncio.sleep(0.02)
    assert set(first) == {"eth5"}
    assert set(second) == {"eth5", "eth6"}
    links.leave(second.append)
    links.leave(second.append)
    assert kernel.ours.fileno() == -1
    kernel.kernels.close()


async def test_messages_that_were_dropped_may_concern_any(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Any] = []
    kernel, links = Kernel(monkeypatch), LinkEvents()
    links.listen(heard.append)
    failures = [OSError(105, "No buffer space available"), BlockingIOError()]

    def receive(size: int) -> bytes:
        raise failures.pop(0)

    class Full:
        recv = staticmethod(receive)

    real, links._socket = links._socket, Full()  # type: ignore[assignment]
    links._read()
    links._socket = real
    assert heard == [None]
    links.leave(heard.append)
    kernel.kernels.close()


class Links(LinkEvents):
    """Told by hand; fails where it is told."""

    def __init__(self) -> None:
        self.heard: Any = None
        self.fails = False

    def listen(self, listener: Any) -> None:
        if self.fails:
            raise OSError(13, "Permission denied")
        self.heard = listener

    def leave(self, listener: Any) -> None:
        self.heard = None


async def test_ports_join_when_they_appear(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ports_watch, "_REST", 0.001)
    rounds: list[int] = []

    async def join() -> None:
        rounds.append(1)
        if len(rounds) == 2:
            raise ValueError("a fault of ours")

    links = Links()
    watch = PortsWatch(links, join)
    watch.watch(())
    assert not links.heard
    watch.watch(["eth5"])
    for name, expected in (("other", 0), ("eth5", 1), (None, 2), ("eth5", 3)):
        links.heard(name)
        await asyncio.sleep(0.02)
        assert len(rounds) == expected, name
    assert "a fault of ours" in caplog.text
    watch.watch(["eth6"])
    links.heard("eth5")
    await asyncio.sleep(0.02)
    assert len(rounds) == 3
    watch.watch(())
    assert not links.heard


async def test_host_without_link_notifications(caplog: pytest.LogCaptureFixture) -> None:
    async def join() -> None:
        raise AssertionError

    links = Links()
    links.fails = True
    watch = PortsWatch(links, join)
    watch.watch(["eth5"])
    assert "will not join their bridges" in caplog.text
    watch.watch(())
