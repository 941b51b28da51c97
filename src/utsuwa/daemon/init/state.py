"""The state of a daemon that is relevant for setting it up."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from utsuwa.daemon.local_api import LocalApi

BRIDGE = "utsuwabr"
"""Default prefix of bridge names, followed by the first free number."""


def is_pending(found: Mapping[str, Any]) -> bool:
    """Whether a pool or network is other members' only: creating it makes it here as well."""
    return found.get("status") == "Pending"


@dataclass(frozen=True)
class ServerState:
    """Names of existing objects, and capabilities of the server."""

    drivers: frozenset[str]
    """Storage drivers that the server supports."""
    pools: frozenset[str]
    networks: frozenset[str]
    """Managed ones."""
    interfaces: frozenset[str]
    """Every network interface of the host, and every network."""
    bridges: frozenset[str]
    """Bridges that the daemon does not manage."""
    devices: frozenset[str]
    """Devices of the profile `default`."""
    makes_networks: bool
    pending_pools: Mapping[str, str] = field(default_factory=dict)
    """The drivers of the pools that other members of the database have, and this one has not."""
    pending_networks: Mapping[str, str] = field(default_factory=dict)
    """The types of such networks."""

    @classmethod
    def of(cls, api: LocalApi) -> ServerState:
        """Query the daemon."""
        server = api.get("/1.0")
        pools, pending_pools = _apart(api.get("/1.0/storage-pools?recursion=1"))
        networks, pending_networks = _apart(api.get("/1.0/networks?recursion=1"))
        return cls(
            drivers=frozenset(d["Name"] for d in server["environment"]["storage_supported_drivers"]),
            pools=frozenset(pool["name"] for pool in pools),
            networks=frozenset(n["name"] for n in networks if n["managed"]),
            interfaces=frozenset(name for _, name in socket.if_nameindex())
            | frozenset(n["name"] for n in networks),
            bridges=frozenset(n["name"] for n in networks if n["type"] == "bridge" and not n["managed"]),
            devices=frozenset(api.get("/1.0/profiles/default")["devices"]),
            makes_networks="network" in server["api_extensions"],
            pending_pools={pool["name"]: pool["driver"] for pool in pending_pools},
            pending_networks={network["name"]: network["type"] for network in pending_networks},
        )

    def free_bridge(self) -> str:
        """Return the first `utsuwabrN` that is unused on the host and in the daemon."""
        number = 0
        while f"{BRIDGE}{number}" in self.interfaces:
            number += 1
        return f"{BRIDGE}{number}"


def _apart(found: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What is here, and what is pending."""
    return [one for one in found if not is_pending(one)], [one for one in found if is_pending(one)]
