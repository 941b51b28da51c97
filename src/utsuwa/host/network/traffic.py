"""Bandwidth limits of interfaces, by the kernel's traffic control (`tc`)."""

from __future__ import annotations

import asyncio
import hashlib

from utsuwa.core.errors import HostError, ProcessFailed
from utsuwa.host.network import bridges, netlink
from utsuwa.host.processes.run import run

_BURST = 128 * 1024
"""Burst size in bytes: at least one aggregated packet must fit."""


async def limit(interface: str, *, to_guest: int | None, from_guest: int | None) -> None:
    """Limit the traffic of a veth's host end, in bits per second; None means no limit.

    Replaces previous limits. Traffic to the container is egress here, and is queued. Traffic from it is
    policed if the kernel supports that, else queued on a helper interface. Raises HostError, ProcessFailed.
    """
    await clear(interface)
    if to_guest is not None:
        await _shape(interface, to_guest)
    if from_guest is None:
        return
    await _tc("qdisc", "add", "dev", interface, "handle", "ffff:", "ingress")
    try:
        await _filter(
            interface, "police", "rate", f"{from_guest}bit", "burst", str(_BURST), "mtu", "64kb", "drop"
        )
    except ProcessFailed:
        await _shape_arriving(interface, from_guest)


async def clear(interface: str) -> None:
    """Remove all limits; does nothing if there are none or the interface does not exist."""
    for place in ("root", "ingress"):
        await run(["tc", "qdisc", "del", "dev", interface, place], accept=(0, 1, 2))
    await remove_helper(interface)


async def remove_helper(interface: str) -> None:
    """As `delete_helper`."""
    await asyncio.to_thread(delete_helper, interface)


def delete_helper(interface: str) -> None:
    """Remove the helper interface, which outlives the interface itself; does nothing if there is none.

    Blocking. Raises HostError.
    """
    _delete(helper_name(interface))


def helper_name(interface: str) -> str:
    """Return the name of the helper interface on which an interface's incoming traffic is queued."""
    return f"ifb{hashlib.sha256(interface.encode()).hexdigest()[:8]}"


async def _shape(interface: str, rate: int) -> None:
    await _tc("qdisc", "add", "dev", interface, "root", "handle", "1:", "htb", "default", "10")
    await _tc(
        *("class", "add", "dev", interface, "parent", "1:", "classid", "1:10"),
        *("htb", "rate", f"{rate}bit", "burst", str(_BURST), "cburst", str(_BURST)),
    )


async def _shape_arriving(interface: str, rate: int) -> None:
    helper = helper_name(interface)
    await asyncio.to_thread(_create, helper)
    await _filter(interface, "action", "mirred", "egress", "redirect", "dev", helper)
    await _shape(helper, rate)


async def _filter(interface: str, *action: str) -> None:
    await _tc(
        *("filter", "add", "dev", interface, "parent", "ffff:", "protocol", "all"),
        *("u32", "match", "u32", "0", "0", *action),
    )


async def _tc(*arguments: str) -> None:
    await run(["tc", *arguments])


def _create(name: str) -> None:
    try:
        netlink.add_link(name, "ifb", up=True)
    except OSError as error:
        raise HostError(f"the kernel cannot limit traffic from instances: {error.strerror}") from error


def _delete(name: str) -> None:
    link = bridges.find(name) if bridges.exists(name) else None
    if link is None or link.kind != "ifb":
        return
    try:
        netlink.delete_link(link.index)
    except OSError as error:
        raise HostError(f"cannot remove the network interface {name!r}: {error.strerror}") from error
