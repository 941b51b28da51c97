"""The state of a daemon that is relevant for setting it up."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from utsuwa.daemon.local_api import LocalApi

BRIDGE = "utsuwabr"
"""Default prefix of bridge names, followed by the first free number."""


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

    @classmethod
    def of(cls, api: LocalApi) -> ServerState:
        """Query the daemon."""
        server = api.get("/1.0")
        networks = api.get("/1.0/networks?recursion=1")
        return cls(
            drivers=frozenset(d["Name"] for d in server["environment"]["storage_supported_drivers"]),
            pools=frozenset(pool["name"] for pool in api.get("/1.0/storage-pools?recursion=1")),
            networks=frozenset(n["name"] for n in networks if n["managed"]),
            interfaces=frozenset(name for _, name in socket.if_nameindex())
            | frozenset(n["name"] for n in networks),
            bridges=frozenset(n["name"] for n in networks if n["type"] == "bridge" and not n["managed"]),
            devices=frozenset(api.get("/1.0/profiles/default")["devices"]),
            makes_networks="network" in server["api_extensions"],
        )

    def free_bridge(self) -> str:
        """Return the first `utsuwabrN` that is unused on the host and in the daemon."""
        number = 0
        while f"{BRIDGE}{number}" in self.interfaces:
            number += 1
        return f"{BRIDGE}{number}"
