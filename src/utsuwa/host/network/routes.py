"""Host routes to subnets behind an instance, by netlink. Blocking: call in threads."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Iterable
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from utsuwa.core.errors import HostError
from utsuwa.host.network import ip_switches

log = logging.getLogger(__name__)

_PROTO_BOOT = 3
"""The protocol that `ip route add` sets; routes of a network itself are static."""
_SCOPE_LINK = 253


def add(interface: str, subnets: Iterable[str]) -> None:
    """Route the subnets to the interface; existing routes are kept.

    If IPv6 is not available on the interface, IPv6 subnets are skipped with a warning.
    """
    for subnet in subnets:
        if ":" in subnet and (lack := ip_switches.ipv6_lack(interface)):
            log.warning("there is no route to %s over %r, for %s", subnet, interface, lack)
        else:
            _change("add", interface, subnet, errno.EEXIST)


def remove(interface: str, subnets: Iterable[str]) -> None:
    """Remove such routes; does nothing if they or the interface do not exist."""
    for subnet in subnets:
        if ":" not in subnet or not ip_switches.ipv6_lack(interface):
            _change("del", interface, subnet, errno.ESRCH)


def _change(command: str, interface: str, subnet: str, passed_over: int) -> None:
    more: dict[str, Any] = {"family": socket.AF_INET6} if ":" in subnet else {"scope": _SCOPE_LINK}
    with IPRoute() as netlink:
        try:
            index = socket.if_nametoindex(interface)
            netlink.route(command, dst=subnet, oif=index, proto=_PROTO_BOOT, **more)
        except NetlinkError as error:
            if error.code != passed_over:
                raise HostError(
                    f"cannot {command} the route to {subnet} over {interface!r}: {error}"
                ) from error
        except OSError as error:
            if command == "add":
                raise HostError(f"The host has no interface {interface!r}: {error.strerror}") from error
