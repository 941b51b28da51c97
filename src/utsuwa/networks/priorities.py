"""Priorities of the packets that instances send, set by rules in the daemon's table.

The kernel forgets the priority of a packet that leaves a network namespace, so it is set on the host: where
the packet arrives from the instance, and again where it is routed, as routing resets the priority of IPv4.
"""

from __future__ import annotations

import asyncio

from utsuwa.networks.firewall import Firewall
from utsuwa.networks.ruleset import Chain, Contribution, Rule, equals, meta, payload, sets

_ARRIVING, _ROUTED = "prioin", "priofwd"
_MANGLE = -150
"""Where in the order of chains packets are changed; filters come later."""


def contribution(interface: str, bridge: str, mac: str, priority: int) -> Contribution:
    """Return the rules for the host's end of a veth pair; what came over a `bridge` is known by its MAC."""
    set_priority = sets(meta("priority"), f"{priority >> 16:x}:{priority & 0xFFFF:x}")
    routed: Rule = [equals(meta("iifname"), bridge or interface)]
    if bridge:
        routed.append(equals(payload("ether", "saddr"), mac))
    return Contribution(
        interface,
        (
            Chain(_ARRIVING, "filter", "ingress", 0, ([set_priority],), device=interface),
            Chain(_ROUTED, "filter", "forward", _MANGLE, ([*routed, set_priority],)),
        ),
    )


class Priorities:
    """The interfaces of instances whose packets have a priority.

    What an earlier daemon has set is read once, so that nothing is asked for interfaces without one.
    """

    def __init__(self, firewall: Firewall) -> None:
        self._firewall = firewall
        self._lock = asyncio.Lock()
        self._set: dict[str, Contribution] | None = None

    async def set(self, interface: str, bridge: str, mac: str, priority: int) -> None:
        """Set the priority of what comes from an interface; 0 removes it, also where there is none.

        Raises HostError, ProcessFailed.
        """
        async with self._lock:
            if self._set is None:
                self._set = {source: Contribution(source) for source in await self._firewall.sources(_ROUTED)}
            if priority == 0:
                if interface in self._set:
                    await self._firewall.clear(interface)
                    del self._set[interface]
                return
            wanted = contribution(interface, bridge, mac, priority)
            if self._set.get(interface) != wanted:
                await self._firewall.replace(wanted)
                self._set[interface] = wanted
