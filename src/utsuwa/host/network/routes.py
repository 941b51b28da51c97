"""Host routes to subnets behind an instance, by netlink. Blocking: call in threads."""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
from collections.abc import Callable, Iterable

from utsuwa.core.errors import HostError
from utsuwa.host.network import addressing, ip_switches

log = logging.getLogger(__name__)


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
    change: Callable[..., None] = {"add": addressing.add_route, "del": addressing.delete_route}[command]
    try:
        index = socket.if_nametoindex(interface)
    except OSError as error:
        if command == "add":
            raise HostError(f"The host has no interface {interface!r}: {error.strerror}") from error
        return
    try:
        # Routes of a network itself are static.
        change(index, ipaddress.ip_network(subnet), addressing.PROTO_BOOT)
    except OSError as error:
        if error.errno != passed_over:
            raise HostError(
                f"cannot {command} the route to {subnet} over {interface!r}: {error.strerror}"
            ) from error
