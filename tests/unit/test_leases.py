"""dnsmasq's file of leases, whether addresses are left, and giving one back."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.instances import ref
from utsuwa.host.network.dhcp import release6_packet, release_packet
from utsuwa.networks import leases
from utsuwa.networks.drivers.bridge import lease_file
from utsuwa.networks.drivers.bridge.settings import Family, settings
from utsuwa.networks.leases import Lease
from utsuwa.networks.ports import Port

DUID = "00:01:00:01:32:98:03:4b:00:16:3e:37:ec:e0"
TEXT = """\
1795511516 00:16:3e:5b:34:34 10.1.2.240 c2 01:00:16:3e:5b:34:34
0 00:16:3E:00:00:01 10.1.2.241 * *
1000 00:16:3e:00:00:02 10.1.2.242 old *
duid 00:01:00:01:32:98:03:4b:00:16:3e:37:ec:e0
1795511516 1234 fd42:1::9 c3 00:01:00:01:32:98:03:4b:00:16:3e:37:ec:e0
1795511516 T1235 fd42:1::a * 00:04:aa:bb
1795511516 1236 nonsense * *
never 00:16:3e:00:00:02 10.1.2.243 odd *
short line
"""


def test_parse() -> None:
    assert list(lease_file.parse(TEXT, now=2000)) == [
        Lease("10.1.2.240", "00:16:3e:5b:34:34", "c2", bytes.fromhex("0100163e5b3434")),
        Lease("10.1.2.241", "00:16:3e:00:00:01", ""),
        Lease("fd42:1::9", "00:16:3e:37:ec:e0", "c3", bytes.fromhex(DUID.replace(":", "")), 1234),
        Lease("fd42:1::a", "", "", b"\x00\x04\xaa\xbb", 1235, temporary=True),
    ]
    assert lease_file.server_duid(TEXT).hex(":") == DUID
    assert lease_file.server_duid("") == b""


def a_port(instance: str, mac: str, ipv4: str = "", ipv6: str = "", *, running: bool = False) -> Port:
    return Port(ref(instance), "eth0", "br0", True, mac, ipv4, ipv6, running=running)


A, B, OTHER = "00:16:3e:00:00:0a", "00:16:3e:00:00:0b", "00:16:3e:00:00:0c"


@pytest.mark.parametrize(
    ("lease", "ports", "stale"),
    [
        # Another device is configured with the address.
        (Lease("10.1.2.9", A, "a"), [a_port("a", A), a_port("b", B, "10.1.2.9")], True),
        (Lease("10.1.2.9", A, "a"), [a_port("a", A, running=True), a_port("b", B, "10.1.2.9")], False),
        (Lease("10.1.2.9", OTHER, ""), [a_port("b", B, "10.1.2.9")], True),
        (Lease("fd42::9", "", "a"), [a_port("a", A), a_port("b", B, "", "fd42:0::9")], True),
        # Nobody knows whose it is: perhaps the device's own.
        (Lease("fd42::9", "", ""), [a_port("b", B, "", "fd42::9")], False),
        # The device is configured with another address.
        (Lease("10.1.2.9", A, "a"), [a_port("a", A, "10.1.2.8")], True),
        (Lease("10.1.2.9", A, "a"), [a_port("a", A, "10.1.2.8", running=True)], False),
        (Lease("10.1.2.9", A, "a"), [a_port("a", A, "", "fd42::9")], False),
        # As it should be.
        (Lease("10.1.2.9", A, "a"), [a_port("a", A, "10.1.2.9")], False),
        (Lease("10.1.2.9", A, "a"), [a_port("a", A)], False),
        (Lease("10.1.2.9", OTHER, ""), [a_port("a", A)], False),
        (Lease("fd42::9", "", "A"), [a_port("a", A, "", "fd42::9")], False),
    ],
)
def test_leases_that_conflict_with_static_addresses_are_unwanted(
    lease: Lease, ports: list[Port], stale: bool
) -> None:
    """A static address is free for its device at once, and nobody who runs loses its own (lxd#7397)."""
    assert leases.unwanted([lease], ports, ()) == ([lease] if stale else [])
    assert leases.unwanted([lease], ports, {lease.mac}) == [lease]


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    for lease in lease_file.parse(text, now=0):
        assert lease.address


def family(ranges: str) -> Family:
    found = settings("br0", {"ipv4.address": "10.1.2.1/24", "ipv4.dhcp.ranges": ranges}, "o").ipv4
    assert found is not None
    return found


def test_free_address_in_ranges() -> None:
    two = family("10.1.2.5-10.1.2.6")
    assert lease_file.has_free_address(two, [])
    assert lease_file.has_free_address(two, ["10.1.2.5", "10.1.2.9", "fd42::5"])
    assert not lease_file.has_free_address(two, ["10.1.2.5", "10.1.2.6"])
    assert not lease_file.has_free_address(family("10.1.2.1-10.1.2.1"), [])
    assert lease_file.has_free_address(family("10.1.2.5-10.1.2.5,10.1.2.9-10.1.2.9"), ["10.1.2.5"])


def test_surely_free_address_by_number_of_leases() -> None:
    two = family("10.1.2.5-10.1.2.6")
    assert not lease_file.surely_has_free_address(two, 1)
    assert lease_file.surely_has_free_address(two, 0)
    assert lease_file.surely_has_free_address(family("10.1.2.5-10.1.2.6,10.1.2.10-10.1.2.19"), 10)


def test_lines_about() -> None:
    found = lease_file.matching_lines(TEXT, ["00:16:3e:00:00:01", "fd42:1::9", ""])
    assert [lease.address for lease in lease_file.parse(found, now=2000)] == ["10.1.2.241", "fd42:1::9"]
    assert lease_file.matching_lines(TEXT, []) == ""


def test_release_packet() -> None:
    packet = release_packet("10.1.2.1", "10.1.2.240", "00:16:3e:5b:34:34", b"\x01abc")
    operation, hardware, length = struct.unpack_from("!BBB", packet)
    assert (operation, hardware, length) == (1, 1, 6)
    assert packet[12:16] == bytes((10, 1, 2, 240))
    assert packet[28:34] == bytes.fromhex("00163e5b3434")
    assert packet[236:240] == bytes.fromhex("63825363")
    assert packet[240:] == bytes((53, 1, 7, 54, 4, 10, 1, 2, 1, 61, 4)) + b"\x01abc\xff"


@pytest.mark.parametrize(
    ("temporary", "association"),
    [
        (False, "00030028" + "000004d2" + "00" * 8),
        (True, "00040020" + "000004d2"),
    ],
)
def test_release_packet_of_dhcpv6(temporary: bool, association: str) -> None:
    packet = release6_packet(b"\xaa\xbb", "fd42::9", b"\xcc", 1234, temporary=temporary)
    address = "00050018" + "fd42" + "00" * 13 + "09" + "00" * 8
    assert packet[:1] == b"\x08"
    assert packet[4:].hex() == "00010001cc" + "00020002aabb" + association + address
