"""Ports in the rows of instances and profiles."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from utsuwa.core.refs import InstanceRef
from utsuwa.core.urls import object_url
from utsuwa.db import device_changes, nics
from utsuwa.db import profiles as profile_rows
from utsuwa.db.nics import NicsRow
from utsuwa.db.profiles import ProfileRow
from utsuwa.db.transaction import Transaction
from utsuwa.networks.ports import Port, bridge_of, ports_of

_ROUTES = ("ipv4.routes", "ipv6.routes")


def everywhere(tx: Transaction) -> list[Port]:
    """Return the ports of all instances on all members, by project, instance and device."""
    return _ports(nics.get_all(tx))


def here(tx: Transaction) -> list[Port]:
    """Return the ports of this member's instances: only these can use its networks."""
    return _here(nics.get_all(tx))


def of_instances(tx: Transaction, instances: Collection[InstanceRef]) -> list[Port]:
    """Return the ports of some of this member's instances, as far as they exist."""
    return _here(nics.get_of(tx, instances))


def with_static_address(tx: Transaction, key: str) -> list[Port]:
    """Return the ports of this member's instances with a device that has this key, such as `ipv4.address`."""
    return _here(nics.get_with(tx, keys=[key]))


def rivals(tx: Transaction, ports: Collection[Port]) -> list[Port]:
    """Return a small superset of the ports of all members that conflict with `ports`.

    It includes those of pending changes.
    """
    keys = set(_ROUTES) if any(port.routes for port in ports) else set()
    keys |= {f"ipv{address.version}.address" for port in ports for address in port.static}
    found = nics.get_with(tx, keys=keys, macs={port.mac for port in ports if port.mac})
    return _ports([*found, *device_changes.nics_to_be(tx)])


def _here(found: Iterable[NicsRow]) -> list[Port]:
    return [port for port in _ports(found) if port.here]


def _ports(found: Iterable[NicsRow]) -> list[Port]:
    ports = [
        replace(port, here=row.here)
        for row in found
        for port in ports_of(row.instance, row.devices, row.config)
    ]
    return sorted(ports, key=lambda port: (port.instance, port.device))


def uses(tx: Transaction) -> dict[str, list[str]]:
    """Return the URLs of the instances and profiles that use each bridge, by its name."""
    profiles = profile_rows.get_all(tx, None)
    found: dict[str, list[str]] = {}
    for port in everywhere(tx):
        url = port.instance.url()
        if url not in found.setdefault(port.bridge, []):
            found[port.bridge].append(url)
    for profile in profiles:
        for bridge in _bridges_of(profile):
            found.setdefault(bridge, []).append(object_url("profiles", profile.name, project=profile.project))
    return found


def _bridges_of(profile: ProfileRow) -> list[str]:
    return sorted({bridge for device in profile.devices.values() if (bridge := bridge_of(device))})
