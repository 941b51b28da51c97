"""Messages of the kernel about interfaces, addresses and routes."""

from __future__ import annotations

import errno
import ipaddress
import struct
from collections.abc import Callable

import pytest

from utsuwa.host.network import addressing, bridges, netlink


def interface(index: int, name: str, *attributes: bytes) -> bytes:
    return netlink.link(index) + netlink.text(netlink.IFLA_IFNAME, name) + b"".join(attributes)


def answers(messages: dict[int, bytes]) -> Callable[[int, bytes], bytes]:
    """Return an `ask` that knows interfaces by their index."""

    def ask(_kind: int, body: bytes) -> bytes:
        index = netlink.LINK.unpack_from(body)[2]
        if index not in messages:
            raise OSError(errno.ENODEV, "No such device")
        return messages[index]

    return ask


def test_a_vlan(monkeypatch: pytest.MonkeyPatch) -> None:
    data = netlink.nested(netlink.INFO_DATA, netlink.attribute(1, struct.pack("=H", 77)))
    info = netlink.nested(netlink.IFLA_LINKINFO, netlink.text(netlink.INFO_KIND, "vlan"), data)
    messages = {5: interface(5, "v0", netlink.number(netlink.IFLA_LINK, 4), info), 4: interface(4, "eth0")}
    monkeypatch.setattr(netlink, "ask", answers(messages))
    monkeypatch.setattr("socket.if_nametoindex", {"v0": 5, "eth0": 4}.__getitem__)
    assert bridges.vlan("v0") == bridges.VlanFacts(lower="eth0", id=77)
    assert bridges.vlan("eth0") is None
    del messages[4]
    assert bridges.vlan("v0") == bridges.VlanFacts(lower="", id=77)
    del messages[5]
    assert bridges.find("v0") is None


def test_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    head = struct.Struct("=BBBBBBBBI")

    def dump(_kind: int, body: bytes) -> list[bytes]:
        """Ignore the family, as a kernel without IPv6 does."""
        return [
            head.pack(2, 0, 0, 0, 254, 4, 0, 1, 0) + netlink.number(4, 3),
            head.pack(2, 24, 0, 0, 252, 3, 0, 1, 0)
            + netlink.number(15, 1000)
            + netlink.attribute(1, bytes((192, 0, 2, 0))),
        ]

    monkeypatch.setattr(netlink, "dump", dump)
    network = ipaddress.ip_network("192.0.2.0/24")
    assert list(addressing.routes()) == [
        addressing.Route(None, 3, addressing.PROTO_STATIC, 254),
        addressing.Route(network, None, addressing.PROTO_BOOT, 1000),
    ]
    assert addressing.routed() == [network]


def test_requests_that_the_kernel_refuses() -> None:
    with pytest.raises(OSError, match="No such device") as refused:
        netlink.delete_link(2**31 - 1)
    assert refused.value.errno == errno.ENODEV
