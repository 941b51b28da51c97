"""Choosing subnets: always free, always of the right kind; overlaps are seen from both sides."""

from __future__ import annotations

import ipaddress
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utsuwa.core.errors import InvalidConfig
from utsuwa.networks import subnets
from utsuwa.networks.subnets import Subnet

v4 = st.builds(
    lambda number, prefix: ipaddress.IPv4Network((number, prefix), strict=False),
    st.integers(0x0A000000, 0x0AFFFFFF),
    st.integers(9, 30),
)
v6 = st.builds(
    lambda number, prefix: ipaddress.IPv6Network((number << 64, prefix), strict=False),
    st.integers(0xFD42 << 48, (0xFD43 << 48) - 1),
    st.integers(17, 64),
)


@given(st.lists(v4, max_size=8), st.integers())
def test_free_ipv4_subnet_does_not_overlap(taken: list[Subnet], seed: int) -> None:
    try:
        found = subnets.free_ipv4(taken, random.Random(seed))
    except InvalidConfig:
        # Only where next to nothing is free may a thousand tries fail.
        assert sum(subnet.num_addresses for subnet in taken) > 2**23
        return
    assert found.network.prefixlen == 24
    assert found.ip in ipaddress.ip_network("10.0.0.0/8")
    assert int(found.ip) == int(found.network.network_address) + 1
    assert not subnets.meets(found.network, taken)


@given(st.lists(v6, max_size=8), st.integers())
def test_free_ipv6_subnet_does_not_overlap(taken: list[Subnet], seed: int) -> None:
    try:
        found = subnets.free_ipv6(taken, random.Random(seed))
    except InvalidConfig:
        assert sum(subnet.num_addresses for subnet in taken) > 2**109
        return
    assert found.network.prefixlen == 64
    assert found.ip.is_private
    assert not subnets.meets(found.network, taken)


def test_no_free_subnet() -> None:
    whole: list[Subnet] = [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8")]
    with pytest.raises(InvalidConfig, match=r"set ipv4\.address yourself"):
        subnets.free_ipv4(whole, random.Random(1))
    with pytest.raises(InvalidConfig, match=r"set ipv6\.address yourself"):
        subnets.free_ipv6(whole, random.Random(1))


@given(v4 | v6, v4 | v6)
def test_overlap_is_mutual_and_means_shared_addresses(one: Subnet, other: Subnet) -> None:
    assert subnets.overlap(one, other) == subnets.overlap(other, one)
    shared = one.version == other.version and (one.network_address in other or other.network_address in one)
    assert subnets.overlap(one, other) == shared


def test_refused_overlap_names_both() -> None:
    subnet = ipaddress.ip_network("10.1.0.0/24")
    others: dict[str, list[Subnet]] = {
        "the network 'a'": [ipaddress.ip_network("10.2.0.0/24"), ipaddress.ip_network("fd42::/64")],
        "the network 'b'": [ipaddress.ip_network("10.1.0.128/25")],
    }
    with pytest.raises(InvalidConfig, match=r"10\.1\.0\.0/24 overlaps 10\.1\.0\.128/25 of the network 'b'"):
        subnets.refuse_overlap("ipv4.address", subnet, others)
    del others["the network 'b'"]
    subnets.refuse_overlap("ipv4.address", subnet, others)


def test_eui64() -> None:
    subnet = ipaddress.ip_network("fd42:1:2:3::/64")
    assert str(subnets.eui64(subnet, "00:16:3e:7b:9f:6e")) == "fd42:1:2:3:216:3eff:fe7b:9f6e"
