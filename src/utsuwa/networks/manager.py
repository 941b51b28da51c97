"""Managed networks: locking, rows, undo and events. Drivers act on the host."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from utsuwa.core.config_keys import without_volatile
from utsuwa.core.errors import AlreadyExists, InUse, InvalidConfig, InvalidName, NotFound, UtsuwaError
from utsuwa.core.names import check_new_interface_name
from utsuwa.core.network_values import MEMBER_KEYS
from utsuwa.core.paths import StatePaths
from utsuwa.core.rollback import Rollback
from utsuwa.core.tasks import finish
from utsuwa.core.urls import object_url
from utsuwa.db import networks as rows
from utsuwa.db.codes import HALF_MADE, PENDING, UNKNOWN
from utsuwa.db.database import Database
from utsuwa.db.networks import NetworkRow
from utsuwa.db.transaction import Transaction
from utsuwa.host.network import bridges
from utsuwa.host.network.link_events import LinkEvents
from utsuwa.networks import port_rows, subnets
from utsuwa.networks.attachments import Attachments
from utsuwa.networks.base import DriverHost
from utsuwa.networks.drivers import network_type
from utsuwa.networks.firewall import Firewall
from utsuwa.networks.live import Live, LiveNetworks, check_here, taken_subnets
from utsuwa.networks.ports import describe_port
from utsuwa.networks.priorities import Priorities
from utsuwa.networks.reading import NetworkReader, visible
from utsuwa.networks.troubles import Troubles
from utsuwa.operations.events import EventHub
from utsuwa.operations.retries import Retries
from utsuwa.operations.warnings import Warnings
from utsuwa.projects import limits, restrictions, scope
from utsuwa.wire.edits import Change, IfMatch, edited
from utsuwa.wire.networks import NetworkPut, NetworksPost

log = logging.getLogger(__name__)


def editable(row: NetworkRow) -> NetworkPut:
    return NetworkPut(config=row.config, description=row.description)


class NetworkManager:
    """All networks of the daemon. One change at a time, as subnets must not overlap.

    `ports` is the part for instances, `reader` that for lists and lookups.
    """

    def __init__(
        self,
        database: Database,
        paths: StatePaths,
        events: EventHub,
        links: LinkEvents,
        owner: str,
        warnings: Warnings,
        retries: Retries,
    ) -> None:
        self._database = database
        self._paths = paths
        self._events = events
        self._retries = retries
        troubles = Troubles(warnings)
        firewall = Firewall(owner)
        host = DriverHost(paths.networks, owner, firewall, troubles.judge)
        self._live = LiveNetworks(database, host, links, troubles)
        self._locks = self._live.locks
        self.ports = Attachments(database, self._live, Priorities(firewall))
        self.reader = NetworkReader(database, self._live)

    # Start and stop of the daemon

    async def start(self) -> None:
        """Bring every network up again, and remove what an interruption left incomplete.

        A network that cannot be brought up is shown as unavailable, and tried again; the daemon starts
        nevertheless.
        """
        found = await self._database.read("all networks", rows.get_all, None)
        for row in found:
            try:
                await self._bring_up(row)
            except UtsuwaError:
                self._retries.add(f"network {row.name}", partial(self._try_again, row))
        await self._sweep({row.name for row in found if row.state not in (*HALF_MADE, PENDING)})
        await self.ports.refresh()

    async def _bring_up(self, row: NetworkRow) -> None:
        if row.state in (UNKNOWN, PENDING):
            return
        if row.state in HALF_MADE:
            log.info("removing the incomplete network %r", row.name)
            await self._live.take_down(row.name)
            await self._remove_row(row)
            return
        await self._live.bring_up(row)

    async def _try_again(self, row: NetworkRow) -> bool:
        """Bring a network up after all; return whether that is settled."""
        try:
            await self.ports.bring_up_again(row.id)
        except UtsuwaError:
            return False
        return True

    async def _sweep(self, known: set[str]) -> None:
        """Sweep networks with a directory but no row, which interrupted changes have left behind."""
        for path in await asyncio.to_thread(lambda: list(self._paths.networks.iterdir())):
            if path.name in known:
                continue
            try:
                if not path.name.startswith("."):
                    await self._live.take_down(path.name)
                await self._live.remove_files(path.name)
            except UtsuwaError as error:
                log.error("what is left of the network %r cannot be removed: %s", path.name, error)

    def stop(self) -> None:
        """Called when the daemon stops; the networks keep working."""
        self._live.leave()

    async def shut_down(self) -> None:
        """Take all networks down when the host shuts down and no container is running any more."""
        await self._live.shut_down()

    # Changing

    async def create(self, project: str, request: NetworksPost) -> str:
        """Create a network, or add one of other members to this member, and return its URL.

        Raises InvalidName, InvalidRequest or NotSupportedYet (type), InvalidConfig, AlreadyExists, HostError;
        nothing is left then.
        """
        holder = await scope.effective(self._database, project, "networks")
        return await finish(self._create(holder, request))

    async def _create(self, project: str, request: NetworksPost) -> str:
        kind = network_type(request.type)
        driver = self._live.driver(kind.name)
        async with self._one_change(), Rollback() as undo:
            name = check_network_name(request.name or await self._free_name(kind.new_names))
            given = NetworkRow(0, project, name, request.description, dict(request.config), type=kind.name)
            others = await self._database.read("network", _of_others, project, name)
            row = _joined(given, others) if others is not None else await self._first_row(given)
            network = self._live.read(row)
            await self._check_subnets(network)
            if name not in self._live and await driver.exists(name):
                raise AlreadyExists(f"The host has a network interface {name!r} already: use another name")
            row = replace(row, id=await self._database.begin("reserve network", _reserve, row))
            undo.push(self._remove_row, row)
            self._live.troubles.know(row)
            await driver.check(network.settings, network.external)
            undo.push(driver.down, name, network.external)
            await driver.up(network.settings)
            await self._database.write("network is ready", rows.set_ready, row.id)
            self._live.mark_up(network)
            undo.keep()
        await self.ports.refresh()
        return self._publish("created", row)

    async def edit(self, project: str, name: str, change: Change[NetworkPut], if_match: IfMatch) -> None:
        """Change description and config; instances stay connected.

        Raises NotFound, InvalidConfig, PreconditionFailed, HostError, the network being as before.
        """
        await finish(self._edit(project, name, change, if_match))

    async def _edit(self, project: str, name: str, change: Change[NetworkPut], if_match: IfMatch) -> None:
        async with self._one_change(), Rollback() as undo:
            old = await self._row(project, name)
            wanted = edited(editable(old), change, if_match)
            keys = network_type(old.type).keys
            config = keys.set_only(without_volatile(wanted.config), old.config)
            new = await self._filled(replace(old, description=wanted.description, config=config))
            await self._database.read("restrictions", _check_rules, new)
            await self._check_ports(project, self._live.read(new))
            await self._bring_over(self._live.read(old), self._live.read(new), undo)
            await self._database.write("update network", _update, new)
            self._live.mark_up(self._live.read(new))
            undo.keep()
        await self.ports.refresh()
        self._publish("updated", new)

    async def _bring_over(self, stored: Live, new: Live, undo: Rollback) -> None:
        """Change from the stored to new settings, if valid; the current state may be neither."""
        if set(new.subnets) - set(stored.subnets):
            await self._check_subnets(new)
        up = self._live.get(new.name)
        if up is not None and up.settings == new.settings:
            return
        await new.driver.check(new.settings, sorted(set(new.external) - set(stored.external)))
        if up is None:
            await new.driver.up(new.settings)
            return
        undo.push(new.driver.change, new.settings, up.settings)
        await new.driver.change(up.settings, new.settings)

    async def rename(self, project: str, name: str, new: str) -> str:
        """Rename and return the new URL. Raises InUse, AlreadyExists, InvalidName, NotFound."""
        return await finish(self._rename(project, name, new))

    async def _rename(self, project: str, name: str, new: str) -> str:
        check_network_name(new)
        async with self._one_change(), Rollback() as undo:
            row = await self._unused(project, name)
            if len(row.locations) > 1:
                where = " and ".join(row.locations)
                raise InUse(
                    f"The network {name!r} is on {where}: delete it on all members but this one first"
                )
            renamed = replace(row, name=new)
            old, network = self._live.read(row), self._live.read(renamed)
            if await network.driver.exists(new):
                raise AlreadyExists(f"The host has a network interface {new!r} already: use another name")
            undo.push(old.driver.up, old.settings)
            await old.driver.down(name, old.external)
            self._live.mark_down(name)
            undo.push(self._live.mark_up, old)
            self._live.troubles.know(renamed)
            undo.push(network.driver.down, new, network.external)
            await network.driver.up(network.settings)
            await self._database.write("rename network", rows.rename, row.id, new)
            self._live.mark_up(network)
            undo.keep()
        await self.ports.refresh()
        return self._publish("renamed", renamed, {"old_name": name})

    async def delete(self, project: str, name: str) -> None:
        """Remove a network from this member. Raises InUse, NotFound, OtherMember.

        The files are removed last: if the row is kept, the network is unchanged.
        """
        await finish(self._delete(project, name))

    async def _delete(self, project: str, name: str) -> None:
        async with self._one_change(), Rollback() as undo:
            row = await self._unused(project, name)
            network = self._live.read(row)
            if name in self._live:
                undo.push(network.driver.up, network.settings)
            await network.driver.down(name, network.external, keep_files=True)
            await self._remove_row(row)
            self._live.mark_down(name)
            undo.keep()
            try:
                await network.driver.remove_files(name)
            except UtsuwaError as error:  # the next start tries again
                log.error("what is left of the network %r cannot be removed: %s", name, error)
        self._publish("deleted", row)

    async def follow_others(self) -> None:
        """Apply other members' changes to networks that this one has as well."""
        await self._live.follow_rows()

    # Steps

    @asynccontextmanager
    async def _one_change(self) -> AsyncIterator[None]:
        """Allow one change at a time on all members, as subnets must not overlap."""
        async with self._database.locks.hold("networks"), self._locks.hold("networks"):
            yield

    async def _first_row(self, given: NetworkRow) -> NetworkRow:
        """Return the row of a new network, with defaults of the driver."""
        config = network_type(given.type).keys.set_only(without_volatile(given.config))
        config = self._live.driver(given.type).with_defaults(config)
        return await self._filled(replace(given, config=config))

    async def _row(self, project: str, name: str) -> NetworkRow:
        def fetch(tx: Transaction) -> NetworkRow:
            return visible(tx, project, name)

        row = check_here(await self._database.read("network", fetch))
        if row.state != "ready":
            raise rows.not_found(name)
        return row

    async def _unused(self, project: str, name: str) -> NetworkRow:
        row = await self._row(project, name)
        if (await self._database.read("network use", port_rows.uses)).get(name):
            raise InUse(f"The network {name!r} is currently in use: remove what uses it first")
        return row

    async def _remove_row(self, row: NetworkRow) -> None:
        await self._database.write("delete network", rows.delete, row.id)

    async def _free_name(self, prefix: str) -> str:
        known = {row.name for row in await self._live.rows()}
        known |= {link.name for link in await asyncio.to_thread(bridges.links)}
        return next(name for n in range(len(known) + 1) if (name := f"{prefix}{n}") not in known)

    async def _filled(self, row: NetworkRow) -> NetworkRow:
        """Return the row with each `auto` replaced by a value that the driver has chosen."""

        async def taken() -> Collection[subnets.Subnet]:
            return [one for used in (await taken_subnets(self._live, row.name)).values() for one in used]

        return replace(
            row, config=await self._live.driver(row.type).with_auto_values(row.name, row.config, taken)
        )

    async def _check_subnets(self, network: Live) -> None:
        taken = await taken_subnets(self._live, network.name)
        for subnet in network.subnets:
            subnets.refuse_overlap(f"ipv{subnet.version}.address", subnet, taken)

    async def _check_ports(self, project: str, network: Live) -> None:
        """Reject changes by a caller in `project` that would invalidate static addresses of instances."""
        ports = await self._database.read("all ports", port_rows.everywhere)
        for port in ports:
            if port.bridge == network.name:
                try:
                    network.driver.check_port(port, network.settings)
                except InvalidConfig as error:
                    reason = f": {error.message}" if port.instance.project == project else ""
                    raise InvalidConfig(
                        f"The change conflicts with {describe_port(port, project)}{reason}"
                    ) from error

    def _publish(
        self,
        action: str,
        row: NetworkRow,
        context: Mapping[str, Any] | None = None,
    ) -> str:
        url = object_url("networks", row.name, project=row.project)
        self._events.publish_lifecycle(f"network-{action}", url, row.project, context)
        return url


def check_network_name(name: str) -> str:
    """Check a name, which is also that of an interface and of a directory. Raises InvalidName."""
    check_new_interface_name(name)
    if not name[0].isalnum():
        raise InvalidName(f"Invalid network name {name!r}: begin with a letter or digit")
    return name


def _of_others(tx: Transaction, project: str, name: str) -> NetworkRow | None:
    """Return a network that only other members have."""
    try:
        row = rows.get(tx, project, name)
    except NotFound:
        return None
    return row if row.state == PENDING else None


def _joined(given: NetworkRow, others: NetworkRow) -> NetworkRow:
    """Return the row with this member's part of a network of others. Raises InvalidConfig on differences."""
    for key, value in given.config.items():
        if key not in MEMBER_KEYS and value not in ("", "auto", others.config.get(key)):
            raise InvalidConfig(f"{key} of network {given.name!r} is shared by all members: omit it")
    if given.type != others.type:
        raise InvalidConfig(f"Network {given.name!r} is of the type {others.type!r} on other members")
    own = {key: value for key, value in given.config.items() if key in MEMBER_KEYS and value}
    return replace(others, config={**others.config, **own}, state="creating")


def _reserve(tx: Transaction, new: NetworkRow) -> int:
    """Insert the row, replacing one left by a failed creation; the lock excludes concurrent ones.

    Raises Forbidden if the project's limits or restrictions do not allow it.
    """
    for row in rows.get_all(tx, None):
        if row.name == new.name and row.state == "creating":
            rows.delete(tx, row.id)
    row_id = rows.insert(tx, new)
    limits.check(tx, new.project)
    _check_rules(tx, new)
    return row_id


def _update(tx: Transaction, new: NetworkRow) -> None:
    rows.update(tx, new)
    _check_rules(tx, new)


def _check_rules(tx: Transaction, row: NetworkRow) -> None:
    """Raise Forbidden if the restrictions of its project do not allow a network."""
    restrictions.get(tx, row.project).check_network(row.name, row.config)
