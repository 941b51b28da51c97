"""What the host says of itself."""

from __future__ import annotations

import os
import socket
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utsuwa.daemon.environment import environment
from utsuwa.host.network import addressing
from utsuwa.host.system import facts
from utsuwa.security.keypair import ServerCertificate


@given(st.sets(st.integers(0, 300)))
def test_lists_of_processors_are_read_as_the_kernel_writes_them(numbers: set[int]) -> None:
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
    assert facts.parse_cpu_list(text + "\n") == numbers


def test_the_host_is_described() -> None:
    found = facts.host_facts()
    assert found.kernel == "Linux"
    assert found.architectures[0] == found.architecture == os.uname().machine
    assert set(found.kernel_features.values()) <= {"true", "false"}
    assert set(found.lxc_features.values()) <= {"true", "false"}


def test_addresses_that_others_reach_come_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not those of bridges and of links that are down (lxd#5003, lxd#12042, lxd#3085)."""
    links = {
        "lo": ("0x9", "unknown", ["10.255.0.1", "127.0.0.1"]),
        "bridge": ("0x1003", "up", ["10.9.0.1"]),
        "unplugged": ("0x1003", "down", ["10.8.0.1"]),
        "off": ("0x1002", "down", ["10.7.0.1"]),
        "eth0": ("0x1003", "up", ["2001:db8::5", "10.1.2.3", "169.254.1.1", "fe80::1"]),
    }
    for name, (flags, state, _) in links.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "flags").write_text(f"{flags}\n")
        (tmp_path / name / "operstate").write_text(f"{state}\n")
    (tmp_path / "bridge" / "bridge").mkdir()
    names = [*links, "gone"]
    listed = [(index, ip_address(a)) for index, name in enumerate(links) for a in links[name][2]]
    monkeypatch.setattr(facts, "_LINKS", tmp_path)
    monkeypatch.setattr(socket, "if_indextoname", lambda index: names[index])
    listed.append((len(links), ip_address("10.6.0.1")))
    monkeypatch.setattr(addressing, "own_addresses", lambda: listed)
    assert facts.host_addresses() == ["10.255.0.1", "10.1.2.3", "2001:db8::5", "10.9.0.1", "10.8.0.1"]


@pytest.mark.parametrize(
    ("listening", "shown"),
    [
        ("", []),
        ("10.1.2.3:8443", ["10.1.2.3:8443"]),
        ("[2001:db8::5]:8443", ["[2001:db8::5]:8443"]),
        (":8443", ["10.1.2.3:8443", "[2001:db8::5]:8443"]),
        ("[::]:8443", ["10.1.2.3:8443", "[2001:db8::5]:8443"]),
        ("0.0.0.0:1", ["10.1.2.3:1", "[2001:db8::5]:1"]),
    ],
)
def test_a_listener_on_every_address_is_shown_as_all_of_them(
    monkeypatch: pytest.MonkeyPatch, listening: str, shown: list[str]
) -> None:
    monkeypatch.setattr("utsuwa.daemon.environment.host_addresses", lambda: ["10.1.2.3", "2001:db8::5"])
    certificate = ServerCertificate(Path("/c"), Path("/k"), "PEM", "f" * 64)
    found = environment(facts.host_facts(), certificate, listening, {"overlay", "dir"}, criu=True)
    assert found.kernel_features["criu"] == "true"
    assert found.addresses == shown
    assert (found.storage, found.storage_version) == ("dir | overlay", "1 | 1")
    assert {driver.name for driver in found.storage_supported_drivers} >= {"dir", "overlay"}
