"""Veth pairs between the host and a running container, by netlink.

Functions that are not async block: call them in threads.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from dataclasses import dataclass

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from utsuwa.core import faults
from utsuwa.core.errors import HostError, InvalidConfig


@dataclass(frozen=True)
class Pair:
    """The two ends: `host_name` stays on the host, `name` with `mac` goes into the container."""

    host_name: str
    name: str
    mac: str
    mtu: int | None = None
    bridge: str = ""
    """The bridge of which the host's end becomes a port, if any."""


def exists(name: str) -> bool:
    """Return whether this network namespace has an interface of that name."""
    return index_of(name) is not None


def create(pair: Pair, pid: int) -> None:
    """Create the pair with its inner end in the network namespace of `pid`, down; the host's end is up.

    The inner end is created in its namespace with its final name: nothing is moved or renamed, and nothing is
    left behind if a name is taken (InvalidConfig). Other failures raise HostError.
    """
    peer: dict[str, object] = {"ifname": pair.name, "net_ns_pid": pid, "address": pair.mac}
    settings: dict[str, object] = {}
    if pair.mtu is not None:
        peer["mtu"] = settings["mtu"] = pair.mtu
    with IPRoute() as netlink:
        try:
            if pair.bridge:
                settings["master"] = socket.if_nametoindex(pair.bridge)
            netlink.link("add", ifname=pair.host_name, kind="veth", state="up", peer=peer, **settings)
            faults.point("veth pair created")
        except NetlinkError as error:
            if error.code == errno.EEXIST:
                raise InvalidConfig(
                    f"The network interface {pair.host_name!r} or, inside, {pair.name!r} exists already"
                ) from error
            raise HostError(f"cannot create the network interface {pair.host_name!r}: {error}") from error
        except OSError as error:
            raise HostError(f"The host has no bridge {pair.bridge!r}: {error.strerror}") from error


def delete(name: str) -> None:
    """Remove a veth pair by its end on the host; does nothing if it does not exist or is not a veth."""
    index = index_of(name)
    if index is None:
        return
    with IPRoute() as netlink:
        try:
            link = next(iter(netlink.get_links(index)))
            info = link.get_attr("IFLA_LINKINFO")
            if info is not None and info.get_attr("IFLA_INFO_KIND") == "veth":
                netlink.link("del", index=index)
                faults.point("veth pair deleted")
        except OSError:
            return
        except NetlinkError as error:
            if error.code != errno.ENODEV:
                raise HostError(f"cannot remove the network interface {name!r}: {error}") from error


async def delete_early(name: str) -> None:
    """As `delete`, but only wait until the interface is gone: the kernel takes some 20 ms more to reply,
    waiting for other CPUs that may still use it.
    """
    index = await asyncio.to_thread(index_of, name)
    if index is None:
        return
    work = asyncio.ensure_future(asyncio.to_thread(delete, name))
    work.add_done_callback(lambda done: done.cancelled() or done.exception())
    while not work.done() and _has(index):
        await asyncio.wait([work], timeout=0.001)
    if work.done():
        work.result()


def index_of(name: str) -> int | None:
    """Return the index of an interface; None if it does not exist."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return None


def _has(index: int) -> bool:
    try:
        socket.if_indextoname(index)
    except OSError:
        return False
    return True
