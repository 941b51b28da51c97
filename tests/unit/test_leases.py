"""dnsmasq's file of leases, whether addresses are left, and giving one back."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from utsuwa.host.dhcp import release_packet
from utsuwa.networks import leases
from utsuwa.networks.leases import Lease
from utsuwa.networks.settings import Family, settings

TEXT = """\
1795511516 00:16:3e:5b:34:34 10.1.2.240 c2 01:00:16:3e:5b:34:34
0 00:16:3E:00:00:01 10.1.2.241 * *
1000 00:16:3e:00:00:02 10.1.2.242 old *
duid 00:01:00:01:32:98:03:4b:00:16:3e:37:ec:e0
1795511516 1234 fd42:1::9 c3 00:01:00:01:32:98:03:4b:00:16:3e:37:ec:e0
1795511516 1235 fd42:1::a * 00:04:aa:bb
1795511516 1236 nonsense * *
never 00:16:3e:00:00:02 10.1.2.243 odd *
short line
"""


def test_parse() -> None:
    assert list(leases.parse(TEXT, now=2000)) == [
        Lease("10.1.2.240", "00:16:3e:5b:34:34", "c2", bytes.fromhex("0100163e5b3434")),
        Lease("10.1.2.241", "00:16:3e:00:00:01", ""),
        Lease("fd42:1::9", "00:16:3e:37:ec:e0", "c3"),
        Lease("fd42:1::a", "", ""),
    ]


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    for lease in leases.parse(text, now=0):
        assert lease.address


def family(ranges: str) -> Family:
    found = settings("br0", {"ipv4.address": "10.1.2.1/24", "ipv4.dhcp.ranges": ranges}, "o").ipv4
    assert found is not None
    return found


def test_room() -> None:
    two = family("10.1.2.5-10.1.2.6")
    assert leases.has_room(two, [])
    assert leases.has_room(two, ["10.1.2.5", "10.1.2.9", "fd42::5"])
    assert not leases.has_room(two, ["10.1.2.5", "10.1.2.6"])
    assert not leases.has_room(family("10.1.2.1-10.1.2.1"), [])
    assert leases.has_room(family("10.1.2.5-10.1.2.5,10.1.2.9-10.1.2.9"), ["10.1.2.5"])


def test_release_packet() -> None:
    packet = release_packet("10.1.2.1", "10.1.2.240", "00:16:3e:5b:34:34", b"\x01abc")
    operation, hardware, length = struct.unpack_from("!BBB", packet)
    assert (operation, hardware, length) == (1, 1, 6)
    assert packet[12:16] == bytes((10, 1, 2, 240))
    assert packet[28:34] == bytes.fromhex("00163e5b3434")
    assert packet[236:240] == bytes.fromhex("63825363")
    assert packet[240:] == bytes((53, 1, 7, 54, 4, 10, 1, 2, 1, 61, 4)) + b"\x01abc\xff"
