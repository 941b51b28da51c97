from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utsuwa.host.helper import rtnetlink


def attribute(kind: int, value: bytes) -> bytes:
    raw = struct.pack("=HH", len(value) + 4, kind) + value
    return raw + b"\0" * (-len(raw) % 4)


def link(flags: int, *attributes: bytes, index: int = 5) -> bytes:
    return struct.pack("=BxHiII", 0, 1, index, flags, 0) + b"".join(attributes)


def address(family: int, prefix: int, scope: int, *attributes: bytes) -> bytes:
    return struct.pack("=BBBBI", family, prefix, 0, scope, 5) + b"".join(attributes)


NAME = attribute(3, b"eth0\0")


def test_a_link() -> None:
    found = rtnetlink.parse_link(
        link(
            0x1 | 0x2,
            NAME,
            attribute(1, bytes.fromhex("00163e010203")),
            attribute(4, struct.pack("=I", 1500)),
            attribute(5 | 0x8000, struct.pack("=I", 42)),  # flagged, as nested attributes are
            attribute(23, struct.pack("=9Q", 1, 2, 3, 4, 5, 6, 7, 8, 9)),
        )
    )
    assert found == {
        "name": "eth0",
        "index": 5,
        "peer": 42,
        "hwaddr": "00:16:3e:01:02:03",
        "mtu": 1500,
        "state": "up",
        "type": "broadcast",
        "counters": {
            "packets_received": 1,
            "packets_sent": 2,
            "bytes_received": 3,
            "bytes_sent": 4,
            "errors_received": 5,
            "errors_sent": 6,
            "packets_dropped_inbound": 7,
            "packets_dropped_outbound": 8,
        },
        "addresses": [],
    }


@pytest.mark.parametrize(
    ("flags", "kind", "state"),
    [(0x8 | 0x1, "loopback", "up"), (0x10, "point-to-point", "down"), (0, "unknown", "down")],
)
def test_kinds_and_states(flags: int, kind: str, state: str) -> None:
    found = rtnetlink.parse_link(link(flags, NAME, attribute(1, b"\0" * 6)))
    assert found is not None
    assert (found["type"], found["state"]) == (kind, state)
    assert found["hwaddr"] == ("" if kind == "loopback" else "00:00:00:00:00:00")
    assert set(found["counters"].values()) == {0}


@pytest.mark.parametrize("payload", [b"", b"\0" * 8, link(0)])
def test_no_link(payload: bytes) -> None:
    assert rtnetlink.parse_link(payload) is None


@pytest.mark.parametrize(
    ("family", "text", "scope", "name"),
    [
        (socket.AF_INET, "10.0.0.1", 0, "global"),
        (socket.AF_INET, "127.0.0.1", 254, "local"),
        (socket.AF_INET6, "fe80::1", 253, "link"),
        (socket.AF_INET6, "fd00::1", 200, "global"),
    ],
)
def test_addresses(family: int, text: str, scope: int, name: str) -> None:
    raw = socket.inet_pton(family, text)
    found = rtnetlink.parse_address(address(family, 24, scope, attribute(1, raw)))
    kind = "inet" if family == socket.AF_INET else "inet6"
    assert found == (5, {"family": kind, "address": text, "netmask": "24", "scope": name})


def test_the_own_end_of_a_point_to_point_address_is_taken() -> None:
    peer, own = attribute(1, bytes([10, 0, 0, 2])), attribute(2, bytes([10, 0, 0, 1]))
    found = rtnetlink.parse_address(address(socket.AF_INET, 32, 0, peer, own))
    assert found is not None
    assert found[1]["address"] == "10.0.0.1"


@pytest.mark.parametrize(
    "payload",
    [
        b"\0",
        address(socket.AF_INET, 24, 0),
        address(28, 8, 0, attribute(1, b"abcd")),
        address(2, 8, 0, b"ab"),
    ],
)
def test_no_address(payload: bytes) -> None:
    assert rtnetlink.parse_address(payload) is None


@given(st.binary(max_size=200))
def test_parsers_handle_any_bytes(data: bytes) -> None:
    for _kind, payload in rtnetlink.parse_messages(data):
        assert len(payload) < len(data)
    rtnetlink.parse_attributes(data, range(1 << 14))
    rtnetlink.parse_link(data)
    rtnetlink.parse_address(data)


@given(st.lists(st.tuples(st.integers(0, 65535), st.binary(max_size=30)), max_size=5))
def test_message_round_trip(messages: list[tuple[int, bytes]]) -> None:
    data = b""
    for kind, payload in messages:
        raw = struct.pack("=IHHII", len(payload) + 16, kind, 0, 0, 0) + payload
        data += raw + b"\0" * (-len(raw) % 4)
    assert list(rtnetlink.parse_messages(data)) == messages


def test_this_host_has_a_loopback_interface() -> None:
    names = {found["name"]: found for found in rtnetlink.interfaces()}
    assert names["lo"]["type"] == "loopback"
    assert names["lo"]["index"] == socket.if_nametoindex("lo")
