"""The kernel's switches for IPv4 and IPv6 below /proc/sys/net. Blocking: call in threads."""

from __future__ import annotations

from pathlib import Path

from utsuwa.core.errors import HostError

_SYSCTL = Path("/proc/sys/net")
NEW = "default"
"""The kernel's name for the settings that an interface is made with."""


def ipv6_lack(interface: str = NEW) -> str:
    """Why an interface has no IPv6; empty where it has.

    Hosts lack it in two ways: the kernel has none (`ipv6.disable=1` at boot), or a sysctl turns it off,
    for all interfaces or for one. Addresses and routes are refused in either case.
    """
    if not (_SYSCTL / "ipv6/conf").is_dir():
        return "the kernel of this host has no IPv6"
    # An interface that does not exist (yet) has no folder of its own.
    for name in (interface, NEW):
        switch = _SYSCTL / "ipv6/conf" / name / "disable_ipv6"
        try:
            off = switch.read_text().strip() != "0"
        except OSError:
            continue
        return f"net.ipv6.conf.{name}.disable_ipv6 is set" if off else ""
    return ""


def ignore_router_advertisements(interface: str) -> None:
    """A bridge is a router: it takes no addresses and no routes from announcements on it."""
    folder = _SYSCTL / "ipv6/conf" / interface
    if folder.is_dir() and not ipv6_lack(interface):
        for switch in ("accept_ra", "autoconf"):
            _write(folder / switch, "0")


def allow_forwarding(version: int) -> None:
    """Let the host pass packets on; written only where it does not already.

    A router ignores router advertisements unless told otherwise: interfaces that heard them go on to.
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
