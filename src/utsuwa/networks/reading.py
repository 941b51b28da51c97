"""Lists and lookups of networks, with their users and leases."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from utsuwa.core.names import DEFAULT_PROJECT
from utsuwa.core.scope import Scope
from utsuwa.db import networks as rows
from utsuwa.db.codes import PENDING, UNKNOWN, unreadable
from utsuwa.db.database import Database
from utsuwa.db.networks import NetworkRow
from utsuwa.db.projects import effective
from utsuwa.db.transaction import Transaction
from utsuwa.host.network import bridges
from utsuwa.networks import port_rows
from utsuwa.networks.leases import LeaseView
from utsuwa.networks.live import LiveNetworks, check_here
from utsuwa.networks.records import Interface, Network
from utsuwa.projects import restrictions
from utsuwa.projects.restrictions import Restrictions

_VISIBLE = ("ready", PENDING)


def visible(tx: Transaction, project: str, name: str) -> NetworkRow:
    """Return the network that a name means in a project. Raises NotFound, also if it may not use it."""
    if not restrictions.get(tx, project).allows_network(name, managed=True):
        raise rows.not_found(name)
    return rows.get(tx, effective(tx, project, "networks"), name)


class NetworkReader:
    """Read-only access to networks."""

    def __init__(self, database: Database, live: LiveNetworks) -> None:
        self._database = database
        self._live = live

    async def all(self, scope: Scope, project: str | None) -> list[Network | Interface]:
        """Return a project's networks and the host's other interfaces, by name; for None the networks of all
        projects that the caller sees, and the interfaces as in `default`. Raises NotFound (project)."""
        links = await asyncio.to_thread(bridges.links)

        def fetch(tx: Transaction) -> tuple[list[NetworkRow], set[str], Restrictions, dict[str, list[str]]]:
            everywhere = rows.get_all(tx, None)
            if project is None:
                all_rules = restrictions.get_all(tx)
                found = [(row, all_rules[row.project]) for row in everywhere if scope.sees(row.project)]
                rules = all_rules[DEFAULT_PROJECT]
            else:
                holder, rules = effective(tx, project, "networks"), restrictions.get(tx, project)
                found = [(row, rules) for row in everywhere if row.project == holder]
            visible = [row for row, by in found if by.allows_network(row.name, managed=True)]
            return visible, {row.name for row in everywhere}, rules, port_rows.uses(tx)

        found, everywhere, rules, use = await self._database.read("networks", fetch)
        shown: list[Network | Interface] = [self._shown(row, use) for row in found if row.state in _VISIBLE]
        if project is not None or scope.sees(DEFAULT_PROJECT):
            shown += [
                Interface(link, use.get(link.name, ()))
                for link in links
                if link.name not in everywhere
                and link.kind != "veth"
                and rules.allows_network(link.name, managed=False)
            ]
        return sorted(shown, key=lambda one: one.row.name if isinstance(one, Network) else one.link.name)

    async def get(self, project: str, name: str) -> Network | Interface:
        """Return a network, or another interface of the host. Raises NotFound."""

        def fetch(tx: Transaction) -> tuple[str, list[NetworkRow], dict[str, list[str]]]:
            named = [row for row in rows.get_all(tx, None) if row.name == name]
            if not restrictions.get(tx, project).allows_network(name, managed=bool(named)):
                raise rows.not_found(name)
            return effective(tx, project, "networks"), named, port_rows.uses(tx)

        holder, everywhere, use = await self._database.read("network", fetch)
        found = [row for row in everywhere if row.project == holder]
        if found and found[0].state == UNKNOWN:
            raise unreadable(f"Network {name!r}")
        if found and found[0].state in _VISIBLE:
            return self._shown(found[0], use)
        # The interface of another project's network is hidden as well.
        link = None if everywhere else await asyncio.to_thread(bridges.find, name)
        if link is None:
            raise rows.not_found(name)
        return Interface(link, use.get(name, ()))

    async def managed(self, project: str, name: str) -> None:
        """Raise NotFound unless a project has a network of this name."""

        def fetch(tx: Transaction) -> None:
            visible(tx, project, name)

        await self._database.read("network", fetch)

    async def leases(self, project: str, name: str) -> list[LeaseView]:
        """Return the addresses in use on this member's part of a network. Raises NotFound, OtherMember."""

        def fetch(tx: Transaction) -> NetworkRow:
            return visible(tx, project, name)

        row = check_here(await self._database.read("network", fetch))
        network = self._live.read(row)
        service = network.addresses
        if service is None:
            return []
        ports = await self._database.read("ports", port_rows.here)
        here = [port for port in ports if port.bridge == name]
        return service.views(network.settings, here, await service.leases(network.settings))

    def _shown(self, row: NetworkRow, use: Mapping[str, Sequence[str]]) -> Network:
        return Network(row, use.get(row.name, ()), row.name in self._live)
