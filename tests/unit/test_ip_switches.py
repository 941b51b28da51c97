"""The kernel's switches for IPv4 and IPv6, read from and written to a folder of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from utsuwa.core.errors import HostError
from utsuwa.host.network import ip_switches


@pytest.fixture
def sysctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "net"
    monkeypatch.setattr(ip_switches, "_SYSCTL", folder)
    for name in ("all", "default", "br0"):
        interface = folder / "ipv6/conf" / name
        interface.mkdir(parents=True)
        for switch, value in {"disable_ipv6": "0", "accept_ra": "1", "autoconf": "1"}.items():
            (interface / switch).write_text(f"{value}\n")
    (folder / "ipv6/conf/all/forwarding").write_text("0\n")
    (folder / "ipv4").mkdir()
    (folder / "ipv4/ip_forward").write_text("0\n")
    return folder


def test_an_interface_has_ipv6_by_its_own_switch(sysctl: Path) -> None:
    assert ip_switches.ipv6_lack() == ip_switches.ipv6_lack("br0") == ""
    (sysctl / "ipv6/conf/br0/disable_ipv6").write_text("1\n")
    assert ip_switches.ipv6_lack("br0") == "net.ipv6.conf.br0.disable_ipv6 is set"
    assert ip_switches.ipv6_lack("br1") == ip_switches.ipv6_lack() == ""


def test_an_interface_that_is_still_to_be_made_has_the_default(sysctl: Path) -> None:
    """So a network is not created with addresses that the kernel refuses (lxd#8705)."""
    (sysctl / "ipv6/conf/default/disable_ipv6").write_text("1\n")
    assert ip_switches.ipv6_lack("br1") == "net.ipv6.conf.default.disable_ipv6 is set"
    assert ip_switches.ipv6_lack("br0") == ""


def test_a_kernel_without_ipv6(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ip_switches, "_SYSCTL", tmp_path)
    assert ip_switches.ipv6_lack("br0") == "the kernel of this host has no IPv6"
    ip_switches.ignore_router_advertisements("br0")
    ip_switches.allow_forwarding(6)


def test_a_bridge_ignores_announcements_where_it_could_hear_them(sysctl: Path) -> None:
    ip_switches.ignore_router_advertisements("br0")
    switches = {name: (sysctl / "ipv6/conf/br0" / name).read_text() for name in ("accept_ra", "autoconf")}
    assert switches == {"accept_ra": "0", "autoconf": "0"}


def test_forwarding_keeps_the_announcements_that_the_host_lives_on(sysctl: Path) -> None:
    (sysctl / "ipv6/conf/br0/accept_ra").write_text("0\n")
    ip_switches.allow_forwarding(6)
    ip_switches.allow_forwarding(4)
    assert (sysctl / "ipv6/conf/all/forwarding").read_text() == "1"
    assert (sysctl / "ipv6/conf/default/accept_ra").read_text() == "2"
    assert (sysctl / "ipv6/conf/br0/accept_ra").read_text() == "0\n"
    assert (sysctl / "ipv4/ip_forward").read_text() == "1"


def test_a_switch_that_cannot_be_set_is_named(sysctl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, text: str) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(HostError, match=r"sysctl net\.ipv4\.ip_forward to 1: Read-only file system: set it"):
        ip_switches.allow_forwarding(4)
