"""Veth pairs between the host and a running container, by netlink.

Functions that are not async block: call them in threads.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from utsuwa.core import faults
from utsuwa.core.errors import HostError, InvalidConfig
from utsuwa.core.threads import in_thread
from utsuwa.host.network import bridges, netlink

_POLL = 0.0005
"""Seconds between looks whether the kernel has begun with a deletion."""
_deletions = ThreadPoolExecutor(4, thread_name_prefix="veth")
"""Short work of other kinds does not wait for them."""


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
    inner = (
        netlink.text(netlink.IFLA_IFNAME, pair.name),
        netlink.attribute(netlink.IFLA_ADDRESS, bytes.fromhex(pair.mac.replace(":", ""))),
        netlink.number(netlink.IFLA_NET_NS_PID, pid),
    )
    _create(pair, pair.name, *inner)
    faults.point("veth pair created")


def prepare(pair: Pair, name: str) -> None:
    """As `create`, but with the inner end on the host as `name`, from where CRIU takes it.

    The host's end does not join the bridge yet: `commands.action_script` does that.
    """
    if pair.bridge:
        _bridge_index(pair)  # so that a missing one is found now
    _create(replace(pair, bridge=""), name, netlink.text(netlink.IFLA_IFNAME, name))


def _bridge_index(pair: Pair) -> int:
    index = index_of(pair.bridge)
    if index is None:
        raise HostError(f"The host has no bridge {pair.bridge!r}")
    return index


def _create(pair: Pair, inner_name: str, *inner: bytes) -> None:
    both, master = [], []
    if pair.mtu is not None:
        both.append(netlink.number(netlink.IFLA_MTU, pair.mtu))
    if pair.bridge:
        master.append(netlink.number(netlink.IFLA_MASTER, _bridge_index(pair)))
    peer = netlink.attribute(netlink.VETH_INFO_PEER, b"".join((netlink.link(), *inner, *both)))
    try:
        netlink.add_link(pair.host_name, "veth", *both, *master, data=peer, up=True)
    except OSError as error:
        if error.errno == errno.EEXIST:
            raise InvalidConfig(
                f"The network interface {pair.host_name!r} or, inside, {inner_name!r} exists already"
            ) from error
        raise HostError(
            f"cannot create the network interface {pair.host_name!r}: {error.strerror}"
        ) from error


async def delete(name: str) -> None:
    """Remove a veth pair by its end on the host; does nothing if it does not exist or is not a veth.

    Returns when neither namespace has its end any more, and both names are free: the kernel takes some 20 ms
    more to free the pair, waiting for other CPUs that may still use it.
    """
    index = await in_thread(index_of, name)
    if index is None:
        return
    ended = threading.Event()
    work = asyncio.get_running_loop().run_in_executor(_deletions, _delete, name, index, ended)
    work.add_done_callback(lambda done: done.cancelled() or done.exception())
    await in_thread(_wait_until_gone, index, ended)
    if ended.is_set():
        await work
    faults.point("veth pair deleted")


def _delete(name: str, index: int, ended: threading.Event) -> None:
    try:
        link = bridges.at(index)
        if link is not None and link.kind == "veth":
            netlink.delete_link(index)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise HostError(f"cannot remove the network interface {name!r}: {error.strerror}") from error
    finally:
        ended.set()


def _wait_until_gone(index: int, ended: threading.Event) -> None:
    """Wait until an interface is gone, or its deletion has ended.

    The kernel answers only between changes of interfaces: when this one is gone from its namespace, so is the
    other end.
    """
    while not ended.is_set() and bridges.at(index) is not None:
        ended.wait(_POLL)


def index_of(name: str) -> int | None:
    """Return the index of an interface; None if it does not exist."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return None
