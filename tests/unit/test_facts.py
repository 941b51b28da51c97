"""What the host says of itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utsuwa.daemon.environment import environment
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


def test_unreachable_addresses_are_omitted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "fib_trie").write_text(
        "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.1.2.0\n        /24 link UNICAST\n"
        "     |-- 10.1.2.3\n        /32 host LOCAL\n     |-- 127.0.0.1\n        /32 host LOCAL\n"
        "Local:\n     |-- 10.1.2.3\n        /32 host LOCAL\n     |-- 169.254.1.1\n        /32 host LOCAL\n"
    )
    (tmp_path / "if_inet6").write_text(
        "00000000000000000000000000000001 01 80 10 80       lo\n"
        "fe800000000000000000000000000001 02 40 20 80     eth0\n"
        "20010db8000000000000000000000005 02 40 00 80     eth0\n"
    )
    monkeypatch.setattr(facts, "_NET", tmp_path)
    assert facts.host_addresses() == ["10.1.2.3", "2001:db8::5"]


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
    found = environment(facts.host_facts(), certificate, listening, {"overlay", "dir"})
    assert found.addresses == shown
    assert (found.storage, found.storage_version) == ("dir | overlay", "1 | 1")
    assert {driver.name for driver in found.storage_supported_drivers} >= {"dir", "overlay"}
