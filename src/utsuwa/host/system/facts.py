"""Facts about the host: kernel, distribution, liblxc and addresses. Read-only; blocking."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from utsuwa.host.network import addressing

_LXC_FEATURES = (
    "cgroup2",
    "core_scheduling",
    "devpts_fd",
    "idmapped_mounts_v2",
    "mount_injection_file",
    "network_gateway_device_route",
    "network_ipvlan",
    "network_l2proxy",
    "network_phys_macvlan_mtu",
    "network_veth_router",
    "pidfd",
    "seccomp_allow_deny_syntax",
    "seccomp_notify",
    "seccomp_proxy_send_notify_fd",
)
_KERNEL_SINCE = {
    "netnsid_getifaddrs": (4, 20),
    "seccomp_listener": (5, 0),
    "seccomp_listener_continue": (5, 5),
    "uevent_injection": (4, 18),
    "unpriv_fscaps": (4, 14),
}
"""Kernel features that LXD reports and that depend on the kernel's version; clients only show them."""

_PERSONALITIES = {"x86_64": ["i686"], "aarch64": ["armv8l"], "ppc64le": [], "s390x": []}


@dataclass(frozen=True)
class HostFacts:
    """Facts that do not change while the host runs."""

    kernel: str
    kernel_version: str
    architecture: str
    architectures: list[str]
    kernel_features: dict[str, str]
    lxc_version: str
    lxc_features: dict[str, str]
    os_name: str
    os_version: str


def host_facts() -> HostFacts:
    system = os.uname()
    release = _os_release()
    version, features = _liblxc()
    return HostFacts(
        kernel=system.sysname,
        kernel_version=system.release,
        architecture=system.machine,
        architectures=[system.machine, *_PERSONALITIES.get(system.machine, [])],
        kernel_features=_kernel_features(system.release),
        lxc_version=version,
        lxc_features=features,
        os_name=release.get("NAME", ""),
        os_version=release.get("VERSION_ID", ""),
    )


def boot_id() -> str:
    """Return the kernel's boot id."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _os_release() -> Mapping[str, str]:
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}


def _kernel_features(release: str) -> dict[str, str]:
    features = {name: _yes(is_since(release, since)) for name, since in _KERNEL_SINCE.items()}
    if "user_notif" not in _seccomp_actions():
        features |= dict.fromkeys(("seccomp_listener", "seccomp_listener_continue"), "false")
    features["idmapped_mounts"] = _yes(is_since(release, (5, 12)))
    features["shiftfs"] = _yes("shiftfs" in Path("/proc/filesystems").read_text())
    return dict(sorted(features.items()))


def is_since(release: str, version: tuple[int, int]) -> bool:
    """Return whether a kernel's release is of a version or a later one."""
    return tuple(int(number) for number in re.findall(r"\d+", release)[:2]) >= version


def _seccomp_actions() -> list[str]:
    try:
        return Path("/proc/sys/kernel/seccomp/actions_avail").read_text().split()
    except OSError:  # a kernel without seccomp
        return []


def _liblxc() -> tuple[str, dict[str, str]]:
    """Return the library's version and features; empty if it is not installed."""
    try:
        library = ctypes.CDLL("liblxc.so.1")
    except OSError:
        return "", {}
    library.lxc_get_version.restype = ctypes.c_char_p
    library.lxc_has_api_extension.argtypes = [ctypes.c_char_p]
    library.lxc_has_api_extension.restype = ctypes.c_bool
    version = library.lxc_get_version().decode()
    return version, {name: _yes(library.lxc_has_api_extension(name.encode())) for name in _LXC_FEATURES}


def _yes(value: bool) -> str:
    return "true" if value else "false"


# ---- processors


def parse_cpu_list(text: str) -> set[int]:
    """Parse the kernel's format of CPU lists: `0-3,8`."""
    numbers: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            numbers.update(range(int(first), int(last or first) + 1))
    return numbers


# ---- addresses

_LINKS = Path("/sys/class/net")
_UP = 0x1
_DOWN = ("down", "lowerlayerdown")


def host_addresses() -> list[str]:
    """Return the host's addresses that others may reach, the most promising ones first.

    Addresses of interfaces that are off, and loopback and link-local ones, are left out. Bridges come late:
    most connect only what runs on this host. Interfaces without a link come last.
    """
    found = []
    for index, address in addressing.own_addresses():
        if address.is_loopback or address.is_link_local:
            continue
        try:
            folder = _LINKS / socket.if_indextoname(index)
            flags = int((folder / "flags").read_text(), 16)
            down = (folder / "operstate").read_text().strip() in _DOWN
        except OSError:  # gone meanwhile
            continue
        if flags & _UP:
            rank = down, (folder / "bridge").is_dir(), address.version
            found.append((rank, str(address)))
    return list(dict.fromkeys(text for _, text in sorted(found, key=lambda entry: entry[0])))
