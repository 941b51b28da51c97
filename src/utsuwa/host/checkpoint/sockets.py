"""Sockets that CRIU cannot save, by the names of their protocols."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

_MODULES = {
    "TCP": "tcp_diag",
    "UDP": "udp_diag",
    "UDP-Lite": "udp_diag",
    "UDPLITE": "udp_diag",
    "RAW": "raw_diag",
    "UNIX": "unix_diag",
    "UNIX-STREAM": "unix_diag",
    "PACKET": "af_packet_diag",
    "NETLINK": "netlink_diag",
}
"""The protocols that CRIU can save, with the modules of the kernel that tell it about their sockets."""
_HINTS = {"MPTCP": ", or run it without MPTCP (programs in Go: GODEBUG=multipathtcp=0)"}


def protocol_of(entry: Path) -> str:
    """Return the protocol of the socket that an entry of /proc/PID/fd is, empty if it is closed.

    The kernel tells it by an attribute of the socket, which is not opened for this.
    """
    try:
        name = os.getxattr(entry, "system.sockprotoname")
    except OSError:
        return ""
    return name.rstrip(b"\0").decode(errors="replace").removesuffix("v6")


def judge(protocol: str, missing: Collection[str], stop: str) -> tuple[str, str] | None:
    """Return why a socket of this protocol cannot be saved and what to do, None if it can.

    `missing` are the modules that the kernel lacks (`diagnosis.missing`), `stop` is how to stop the process.
    """
    module = _MODULES.get(protocol)
    if module is None:
        return f"has a socket of the protocol {protocol}", stop + _HINTS.get(protocol, "")
    if module in missing:
        return f"has a socket of the protocol {protocol}", f"provide the kernel's module {module}"
    return None
