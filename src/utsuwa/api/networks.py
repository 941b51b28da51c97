"""`/1.0/networks`: the daemon's networks, and the host's other interfaces, read-only."""

from __future__ import annotations

import asyncio

from utsuwa.api.http import Created, Empty, Request, Result, Route, Sync, about
from utsuwa.core.entitlements import Entity
from utsuwa.core.errors import NotFound
from utsuwa.core.names import DEFAULT_PROJECT
from utsuwa.core.scope import Scope
from utsuwa.db.codes import PENDING
from utsuwa.host.helper import rtnetlink
from utsuwa.host.network import bridges
from utsuwa.networks.manager import editable
from utsuwa.networks.records import Interface, Network
from utsuwa.wire.edits import merge, replace
from utsuwa.wire.networks import Network as NetworkRecord
from utsuwa.wire.networks import (
    NetworkLease,
    NetworkPatch,
    NetworkPost,
    NetworkPut,
    NetworksPost,
    NetworkState,
    NetworkStateAddress,
    NetworkStateBridge,
    NetworkStateCounters,
    NetworkStateVlan,
)

_KINDS = {"bridge": "bridge", "bond": "bond", "vlan": "vlan", "macvlan": "macvlan", "": "physical"}
"""The API's names for the kernel's kinds of interfaces; others are `unknown`."""


async def list_networks(request: Request) -> Result:
    request.refuse_filter()
    found = await request.services.networks.reader.all(request.scope, request.listed_project)
    records = [_record(request.scope, one) for one in found]
    if request.recursion:
        return Sync(records)
    return Sync([request.listed_url("networks", one.name, one.project) for one in records])


async def create_network(request: Request) -> Result:
    body = await request.body(NetworksPost)
    return Created(await request.services.networks.create(request.project, body))


async def show_network(request: Request) -> Result:
    found = await request.services.networks.reader.get(request.project, request.params["name"])
    record = _record(request.scope, found)
    return Sync(
        record, etag=editable(found.row) if isinstance(found, Network) else [record.name, record.type]
    )


async def replace_network(request: Request) -> Result:
    body = await request.body(NetworkPut)
    await request.services.networks.edit(
        request.project, request.params["name"], replace(body), request.if_match
    )
    return Empty()


async def patch_network(request: Request) -> Result:
    body = await request.body(NetworkPatch)
    await request.services.networks.edit(
        request.project, request.params["name"], merge(body), request.if_match
    )
    return Empty()


async def rename_network(request: Request) -> Result:
    body = await request.body(NetworkPost)
    return Created(await request.services.networks.rename(request.project, request.params["name"], body.name))


async def delete_network(request: Request) -> Result:
    await request.services.networks.delete(request.project, request.params["name"])
    return Empty()


async def show_state(request: Request) -> Result:
    name = request.params["name"]
    await request.services.networks.reader.get(request.project, name)
    return Sync(await asyncio.to_thread(_state, name))


async def list_leases(request: Request) -> Result:
    found = await request.services.networks.reader.leases(request.project, request.params["name"])
    here = request.services.events.location
    return Sync(
        [
            NetworkLease(
                hostname=one.hostname, hwaddr=one.mac, address=one.address, type=one.kind, location=here
            )
            for one in found
        ]
    )


def _record(scope: Scope, found: Network | Interface) -> NetworkRecord:
    if isinstance(found, Interface):
        kind = "loopback" if found.link.loopback else _KINDS.get(found.link.kind, "unknown")
        return NetworkRecord(
            config={},
            description="",
            name=found.link.name,
            type=kind,
            used_by=scope.visible(found.used_by),
            managed=False,
            status="",
            locations=None,
            project=DEFAULT_PROJECT,
        )
    return NetworkRecord(
        config=found.row.config,
        description=found.row.description,
        name=found.row.name,
        type=found.row.type,
        used_by=scope.visible(found.used_by),
        managed=True,
        status=_status(found),
        locations=list(found.row.locations),
        project=found.row.project,
    )


def _status(network: Network) -> str:
    """Return LXD's status: a network that this member does not have yet is pending."""
    if network.row.state == PENDING:
        return "Pending"
    return "Created" if network.available else "Unavailable"


def _state(name: str) -> NetworkState:
    """Return an interface's state. Blocking. Raises NotFound if it does not exist (any more)."""
    link = next((one for one in rtnetlink.interfaces() if one["name"] == name), None)
    if link is None:
        raise NotFound(f"The host has no network interface {name!r}")
    bridge, vlan = bridges.facts(name), bridges.vlan(name)
    return NetworkState(
        addresses=[
            NetworkStateAddress(
                family=a["family"], address=a["address"], netmask=str(a["netmask"]), scope=a["scope"]
            )
            for a in link["addresses"]
        ],
        counters=NetworkStateCounters(
            **{key: link["counters"].get(key, 0) for key in NetworkStateCounters.__struct_fields__}
        ),
        hwaddr=link["hwaddr"],
        mtu=link["mtu"],
        state=link["state"],
        type=link["type"],
        bridge=None
        if bridge is None
        else NetworkStateBridge(
            id=bridge.id,
            stp=bridge.stp,
            forward_delay=bridge.forward_delay,
            vlan_default=bridge.vlan_default,
            vlan_filtering=bridge.vlan_filtering,
            upper_devices=bridge.ports,
        ),
        vlan=None if vlan is None else NetworkStateVlan(lower_device=vlan.lower, vid=vlan.id),
    )


_ONE = "/1.0/networks/{name}"

ROUTES: tuple[Route, ...] = about(
    Entity.NETWORK,
    Route(
        "GET",
        "/1.0/networks",
        list_networks,
        "List the networks",
        list[str] | list[NetworkRecord],
        lists_projects=True,
    ),
    Route("POST", "/1.0/networks", create_network, "Create a network", Created, NetworksPost),
    Route("GET", _ONE, show_network, "Show a network", NetworkRecord),
    Route("PUT", _ONE, replace_network, "Replace a network's description and config", Empty, NetworkPut),
    Route("PATCH", _ONE, patch_network, "Change a network", Empty, NetworkPatch),
    Route("POST", _ONE, rename_network, "Rename a network", Created, NetworkPost),
    Route("DELETE", _ONE, delete_network, "Delete a network", Empty),
    Route("GET", f"{_ONE}/state", show_state, "Show a network's addresses and counters", NetworkState),
    Route("GET", f"{_ONE}/leases", list_leases, "List the addresses in use", list[NetworkLease]),
)
