"""Sysctls of IPv4 and IPv6 below /proc/sys/net. Blocking: call in threads."""

from __future__ import annotations

from pathlib import Path

from utsuwa.core.errors import HostError

_SYSCTL = Path("/proc/sys/net")
NEW = "default"
"""The kernel's name for the settings of new interfaces."""


def ipv6_lack(interface: str = NEW) -> str:
    """Return why IPv6 is not available on an interface; empty if it is.

    Either the kernel has no IPv6 (`ipv6.disable=1` at boot), or a sysctl disables it for all interfaces or
    for one. The kernel rejects addresses and routes in both cases.
    """
    if not (_SYSCTL / "ipv6/conf").is_dir():
        return "the kernel of this host has no IPv6"
    # An interface that does not exist (yet) has no directory.
    for name in (interface, NEW):
        switch = _SYSCTL / "ipv6/conf" / name / "disable_ipv6"
        try:
            off = switch.read_text().strip() != "0"
        except OSError:
            continue
        return f"net.ipv6.conf.{name}.disable_ipv6 is set" if off else ""
    return ""


def ignore_router_advertisements(interface: str) -> None:
    """Disable router advertisements on a bridge: as a router it must not accept addresses and routes."""
    folder = _SYSCTL / "ipv6/conf" / interface
    if folder.is_dir() and not ipv6_lack(interface):
        for switch in ("accept_ra", "autoconf"):
            _write(folder / switch, "0")


def allow_forwarding(version: int) -> None:
    """Enable IP forwarding on the host, unless it is already enabled.

    A router ignores router advertisements by default: keep them enabled on interfaces that accepted them.
    """
    if version == 4:
        _write(_SYSCTL / "ipv4/ip_forward", "1")
        return
    forwarding = _SYSCTL / "ipv6/conf/all/forwarding"
    if not forwarding.exists() or forwarding.read_text().strip() != "0":
        return
    for switch in (_SYSCTL / "ipv6/conf").glob("*/accept_ra"):
        if switch.read_text().strip() == "1":
            _write(switch, "2")
    _write(forwarding, "1")


def _write(path: Path, value: str) -> None:
    try:
        if path.read_text().strip() != value:
            path.write_text(value)
    except OSError as error:
        key = ".".join(path.relative_to(_SYSCTL.parent).parts)
        raise HostError(
            f"cannot set the sysctl {key} to {value}: {error.strerror}: set it on the host, then try again"
        ) from error
