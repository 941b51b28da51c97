"""The networks' manager on a real database, the host played by a recorder."""

from __future__ import annotations

import asyncio
import ipaddress
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support import prepared
from tests.support.instances import C1, instance_row, ref
from tests.support.members import second_member
from tests.support.open_warnings import Judged, OpenWarnings, no_retries
from utsuwa.core.errors import (
    AlreadyExists,
    HostError,
    InUse,
    InvalidConfig,
    InvalidName,
    InvalidRequest,
    NotFound,
    NotSupportedYet,
    OtherMember,
    PreconditionFailed,
)
from utsuwa.core.paths import StatePaths
from utsuwa.core.scope import EVERYTHING
from utsuwa.db import instances as instance_rows
from utsuwa.db import networks as rows
from utsuwa.db import schema
from utsuwa.db.database import Database
from utsuwa.db.networks import NetworkRow
from utsuwa.host.network import addressing, bridges, ip_switches
from utsuwa.host.network.link_events import LinkEvents
from utsuwa.networks import base, live
from utsuwa.networks.drivers.bridge import BRIDGE
from utsuwa.networks.drivers.bridge.addresses import BridgeAddresses
from utsuwa.networks.drivers.bridge.driver import BridgeDriver
from utsuwa.networks.drivers.bridge.servers import Servers
from utsuwa.networks.drivers.bridge.settings import BridgeSettings
from utsuwa.networks.firewall import Firewall
from utsuwa.networks.leases import Lease
from utsuwa.networks.manager import NetworkManager
from utsuwa.networks.ports import Port
from utsuwa.networks.records import Network
from utsuwa.operations import retries
from utsuwa.operations.events import EventHub
from utsuwa.wire.edits import any_state, merge
from utsuwa.wire.edits import replace as replace_with
from utsuwa.wire.networks import NetworkPatch, NetworkPut, NetworksPost

FIXED = {"ipv4.address": "10.1.2.1/24", "ipv6.address": "none"}


class RecordingAddresses(BridgeAddresses):
    """Remembers of which instances it was told; fails where the host does."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.whole = False
        self.seen: list[tuple[list[str], Any]] = []
        self.held: list[Lease] = []

    async def leases(self, network: BridgeSettings, matching: Any = None) -> list[Lease]:
        return self.held

    def is_current(self, name: str) -> bool:
        return self.whole

    async def update(self, network: BridgeSettings, ports: Any, instances: Any) -> base.PortUpdate:
        if "hosts" in self._host.fails:
            raise self._host.fails["hosts"]
        self.seen.append(([port.instance.name for port in ports], instances))
        self.whole = True
        return base.PortUpdate(False)


class Host(BridgeDriver):
    """What would be done, as words; fails where it is told."""

    def __init__(self) -> None:
        super().__init__(
            "utsuwa-test", Servers(Path("/nowhere"), Judged()), Firewall("utsuwa-test"), Judged()
        )
        self.addresses = self.recording = RecordingAddresses(self)
        self.done: list[str] = []
        self.fails: dict[str, Exception] = {}
        self.folder = Path()

    def _note(self, what: str, name: str) -> None:
        self.done.append(f"{what} {name}")
        if what in self.fails:
            raise self.fails[what]

    async def up(self, bridge: BridgeSettings) -> None:
        self._note("up", bridge.name)

    async def change(self, old: BridgeSettings, new: BridgeSettings) -> None:
        self.done.append(f"change {new.name} to {', '.join(map(str, new.addresses))}")
        if "change" in self.fails:
            raise self.fails.pop("change")

    async def check(self, network: BridgeSettings, added: Any) -> None:
        self._note("test", network.name)

    async def down(self, network: str, external: Any = (), *, keep_files: bool = False) -> None:
        self._note("stop" if keep_files else "down", network)

    async def remove_files(self, name: str) -> None:
        shutil.rmtree(self.folder / name, ignore_errors=True)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await Database.open(prepared.sqlite(tmp_path / "utsuwa.db"))
    yield opened
    await opened.close()


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def warnings() -> OpenWarnings:
    return OpenWarnings()


@pytest.fixture
async def networks(
    database: Database, tmp_path: Path, host: Host, warnings: OpenWarnings, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[NetworkManager]:
    paths = StatePaths(tmp_path)
    paths.networks.mkdir()
    monkeypatch.setattr(bridges, "links", list)
    monkeypatch.setattr(addressing, "taken", dict)
    monkeypatch.setattr(addressing, "routed", list)
    monkeypatch.setattr(bridges, "exists", lambda name: name == "lo")
    monkeypatch.setattr(bridges, "find", lambda name: None)
    host.folder = paths.networks
    kind = replace(BRIDGE, driver=lambda _: host)
    monkeypatch.setattr(live, "NETWORK_TYPES", (kind,))
    tries = no_retries()
    yield NetworkManager(database, paths, EventHub(), LinkEvents(), "utsuwa-test", warnings, tries)
    await tries.stop()


async def stored(database: Database) -> dict[str, NetworkRow]:
    return {row.name: row for row in await database.read("test", rows.get_all, None)}


async def make(networks: NetworkManager, name: str = "br0", **config: str) -> None:
    keys = {key.replace("_", "."): value for key, value in config.items()}
    await networks.create("default", NetworksPost(name=name, config=FIXED | keys))


async def edit(networks: NetworkManager, name: str = "br0", **config: str) -> None:
    keys = {key.replace("_", "."): value for key, value in config.items()}
    await networks.edit("default", name, merge(NetworkPatch(config=keys)), any_state)


async def test_create(networks: NetworkManager, database: Database, host: Host) -> None:
    url = await networks.create("default", NetworksPost(description="x"))
    assert url == "/1.0/networks/utsuwabr0"
    (row,) = (await stored(database)).values()
    assert (row.name, row.description, row.state) == ("utsuwabr0", "x", "ready")
    assert row.config["ipv4.nat"] == row.config["ipv6.nat"] == "true"
    assert host.done == ["test utsuwabr0", "up utsuwabr0"]
    shown = await networks.reader.get("default", "utsuwabr0")
    assert isinstance(shown, Network)
    assert shown.available


async def test_without_ipv6_on_the_host(
    networks: NetworkManager,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(ip_switches, "ipv6_lack", lambda _: "the kernel has none")
    await networks.create("default", NetworksPost(name="br0"))
    assert (await stored(database))["br0"].config["ipv6.address"] == "none"
    assert "network 'br0' gets no IPv6 subnet because the kernel has none" in caplog.text


@pytest.mark.parametrize("step", ["test", "up"])
async def test_a_failed_creation_leaves_nothing(
    networks: NetworkManager, database: Database, host: Host, step: str
) -> None:
    host.fails[step] = HostError("no")
    with pytest.raises(HostError):
        await make(networks)
    assert await stored(database) == {}
    assert host.done[-1] == ("test br0" if step == "test" else "down br0")
    host.fails.clear()
    await make(networks)


async def test_names(networks: NetworkManager) -> None:
    for name in ("x" * 16, "a b", "-x", "all", "default", "../x", ".x"):
        with pytest.raises(InvalidName):
            await make(networks, name)
    with pytest.raises(AlreadyExists, match="'lo'"):
        await make(networks, "lo")
    await make(networks)
    with pytest.raises((AlreadyExists, InvalidConfig)):
        await make(networks)
    with pytest.raises(NotFound):
        await networks.create("nowhere", NetworksPost(name="br1"))


async def test_subnets_are_compared_with_all_others(
    networks: NetworkManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make(networks)
    with pytest.raises(InvalidConfig, match="the network 'br0'"):
        await make(networks, "br1")
    await make(networks, "br1", ipv4_address="10.1.3.1/24")
    with pytest.raises(InvalidConfig, match="the network 'br0'"):
        await edit(networks, "br1", ipv4_address="10.1.0.1/16")
    taken = {"eth0": [FIXED_SUBNET]}
    monkeypatch.setattr(addressing, "taken", lambda: taken)
    # An overlap that came about later does not stand in the way of other changes.
    await edit(networks, user_note="x")


FIXED_SUBNET = ipaddress.ip_network("10.1.2.0/24")


async def test_update(networks: NetworkManager, database: Database, host: Host) -> None:
    await make(networks)
    host.done.clear()
    await edit(networks, user_note="x")
    assert host.done == []
    await edit(networks, ipv4_address="10.1.9.1/24")
    assert host.done == ["test br0", "change br0 to 10.1.9.1/24"]
    await edit(networks, ipv4_address="")
    assert "ipv4.address" not in (await stored(database))["br0"].config
    await edit(networks, ipv4_address="auto")
    assert (await stored(database))["br0"].config["ipv4.address"].startswith("10.")
    with pytest.raises(NotFound):
        await edit(networks, "br9")


async def test_a_failed_update_is_reverted(networks: NetworkManager, database: Database, host: Host) -> None:
    await make(networks)
    host.done.clear()
    host.fails["change"] = HostError("no")
    with pytest.raises(HostError):
        await edit(networks, ipv4_address="10.1.9.1/24")
    assert host.done[-2:] == ["change br0 to 10.1.9.1/24", "change br0 to 10.1.2.1/24"]
    assert (await stored(database))["br0"].config["ipv4.address"] == "10.1.2.1/24"
    host.fails["test"] = InvalidConfig("dnsmasq says no")
    host.done.clear()
    with pytest.raises(InvalidConfig, match="dnsmasq says no"):
        await edit(networks, raw_dnsmasq="nonsense")
    assert host.done == ["test br0"]


async def test_etag(networks: NetworkManager) -> None:
    await make(networks)
    seen: list[Any] = []

    def refuse(source: Any) -> None:
        seen.append(source)
        raise PreconditionFailed("no")

    with pytest.raises(PreconditionFailed):
        await networks.edit("default", "br0", merge(NetworkPatch()), refuse)
    assert seen == [NetworkPut(config=FIXED)]


async def test_rename(networks: NetworkManager, database: Database, host: Host) -> None:
    await make(networks)
    host.done.clear()
    assert await networks.rename("default", "br0", "br1") == "/1.0/networks/br1"
    assert host.done == ["down br0", "up br1"]
    assert list(await stored(database)) == ["br1"]
    host.done.clear()
    host.fails["up"] = HostError("no")
    with pytest.raises(HostError):
        await networks.rename("default", "br1", "br2")
    assert host.done == ["down br1", "up br2", "down br2", "up br1"]
    assert list(await stored(database)) == ["br1"]
    with pytest.raises(InvalidName):
        await networks.rename("default", "br1", "a/b")


async def test_delete(networks: NetworkManager, database: Database, host: Host) -> None:
    await make(networks)
    host.done.clear()
    host.fails["stop"] = HostError("busy")
    with pytest.raises(HostError):
        await networks.delete("default", "br0")
    assert list(await stored(database)) == ["br0"]
    assert host.done == ["stop br0", "up br0"]
    host.fails.clear()
    await networks.delete("default", "br0")
    assert await stored(database) == {}
    with pytest.raises(NotFound):
        await networks.delete("default", "br0")


async def test_an_incomplete_network_is_created_again(networks: NetworkManager, database: Database) -> None:
    """A full disk kept its making from being undone."""
    await database.write("test", rows.insert, NetworkRow(0, "default", "br0", config=FIXED))
    await make(networks)
    assert (await stored(database))["br0"].state == "ready"


async def test_start_completes_interrupted_changes(
    networks: NetworkManager, database: Database, host: Host
) -> None:
    await database.write("test", rows.insert, NetworkRow(0, "default", "half", config=FIXED))
    other = {"ipv4.address": "10.1.3.1/24"}
    await database.write("test", rows.insert, NetworkRow(0, "default", "whole", config=other, state="ready"))
    await networks.start()
    assert host.done == ["down half", "up whole"]
    assert list(await stored(database)) == ["whole"]
    with pytest.raises(NotFound):
        await networks.reader.get("default", "half")


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.002)


async def test_a_network_that_cannot_be_brought_up_is_tried_again(
    networks: NetworkManager,
    database: Database,
    host: Host,
    warnings: OpenWarnings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Meanwhile a warning says why; the daemon starts nevertheless, and a deleted one is given up."""
    monkeypatch.setattr(retries, "_WAITS", (0.005,))
    monkeypatch.setattr(retries, "_REST", 0.001)
    for name, subnet in (("br0", "10.1.2.1/24"), ("gone", "10.1.3.1/24")):
        row = NetworkRow(0, "default", name, config={"ipv4.address": subnet}, state="ready")
        await database.write("test", rows.insert, row)
    host.fails["up"] = HostError("port 53 is in use")
    await networks.start()
    assert warnings.messages == {"Network unavailable": "network 'gone' cannot be used: port 53 is in use"}
    await networks.delete("default", "gone")
    host.done.clear()
    await until(lambda: host.done.count("up br0") > 2)
    assert "up gone" not in host.done
    host.fails.clear()
    await until(lambda: "network br0" not in networks._retries and "network gone" not in networks._retries)
    shown = await networks.reader.get("default", "br0")
    assert isinstance(shown, Network)
    assert shown.available
    assert list(warnings.messages.values()) == ["network 'gone' cannot be used: port 53 is in use"]


async def test_start_removes_networks_without_a_row(
    networks: NetworkManager, host: Host, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("half", ".x.test"):
        (tmp_path / "networks" / name).mkdir()
    await networks.start()
    assert host.done == ["down half"]
    assert list((tmp_path / "networks").iterdir()) == []
    (tmp_path / "networks" / "half").mkdir()
    host.fails["down"] = HostError("busy")
    await networks.start()
    assert "'half' cannot be removed: busy" in caplog.text


async def test_a_network_that_the_host_refuses_is_tried_again(
    networks: NetworkManager, host: Host, database: Database
) -> None:
    await database.write("test", rows.insert, NetworkRow(0, "default", "br0", config=FIXED, state="ready"))
    host.fails["up"] = HostError("no")
    await networks.start()
    shown = await networks.reader.get("default", "br0")
    assert isinstance(shown, Network)
    assert not shown.available
    with pytest.raises(HostError):
        await networks.ports.uplink("eth0", "br0", managed=True)
    host.fails.clear()
    assert await networks.ports.uplink("eth0", "br0", managed=True) is not None
    with pytest.raises(InvalidConfig, match="'br9' does not exist"):
        await networks.ports.uplink("eth0", "br9", managed=True)
    with pytest.raises(InvalidConfig, match="no bridge 'br9'"):
        await networks.ports.uplink("eth0", "br9", managed=False)


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), HostError("no")])
async def test_failures_to_update_names_are_logged(
    networks: NetworkManager, host: Host, caplog: pytest.LogCaptureFixture, failure: Exception
) -> None:
    host.fails["hosts"] = failure
    await make(networks)
    assert "cannot update names and addresses" in caplog.text


async def test_only_changed_instances_are_updated(
    networks: NetworkManager, host: Host, database: Database
) -> None:
    told = host.addresses
    assert isinstance(told, RecordingAddresses)
    nic = {"type": "nic", "network": "br0", "hwaddr": "00:16:3e:00:00:01"}
    for name in ("c1", "c2"):
        row = instance_row(name, devices={"eth0": nic})
        await database.write("test", instance_rows.insert, row)
    await make(networks)
    await networks.ports.refresh(ref("c2"))
    assert told.seen == [(["c1", "c2"], None), (["c2"], (ref("c2"),))]
    told.whole = False
    await networks.ports.refresh(ref("c2"))
    assert told.seen[-1] == (["c1", "c2"], None)


async def test_ports_are_compared_with_those_of_others(networks: NetworkManager, database: Database) -> None:
    await make(networks)
    nic = {"type": "nic", "network": "br0"}
    given = {"volatile.eth0.hwaddr": "00:16:3e:00:00:01"}
    one = instance_row(devices={"eth0": nic}, config=given)
    await database.write("test", instance_rows.insert, one)
    new = Port(ref("c2"), "eth0", "br0", True, "00:16:3e:00:00:01", "", "")
    with pytest.raises(InvalidConfig, match="is taken by device 'eth0' of instance 'c1'"):
        await networks.ports.check([new.instance], [new])
    await networks.ports.check([new.instance], [replace(new, mac="00:16:3e:00:00:02")])
    await networks.ports.check([new.instance, C1], [new])
    with pytest.raises(InvalidConfig, match="'br9' does not exist"):
        await networks.ports.check([new.instance], [replace(new, bridge="br9")])
    with pytest.raises(InvalidConfig, match="outside of the network's subnet"):
        await networks.ports.check([new.instance], [replace(new, mac="", ipv4="10.9.9.9")])


async def test_changes_do_not_reveal_instances_of_other_projects(
    networks: NetworkManager, host: Host, database: Database
) -> None:
    await database.write("test", lambda tx: tx.insert(schema.projects, {"name": "other", "description": ""}))
    await make(networks)
    nic = {"type": "nic", "network": "br0", "ipv4.address": "10.1.2.9"}
    row = instance_row("secret", "other", devices={"eth0": nic})
    await database.write("test", instance_rows.insert, row)
    moved = NetworkPut(config={**FIXED, "ipv4.address": "10.1.9.1/24"})
    with pytest.raises(InvalidConfig, match="conflicts with an instance of another project$"):
        await networks.edit("default", "br0", replace_with(moved), any_state)
    with pytest.raises(InvalidConfig, match=r"conflicts with device 'eth0' of instance 'secret': .*outside"):
        await networks.edit("other", "br0", replace_with(moved), any_state)


async def test_a_lease_in_use_does_not_reveal_instances_of_other_projects(
    networks: NetworkManager, host: Host, database: Database
) -> None:
    await database.write("test", lambda tx: tx.insert(schema.projects, {"name": "other", "description": ""}))
    await make(networks)
    held = Lease("10.1.2.9", "00:16:3e:00:00:01", "secret")
    config = {"volatile.eth0.hwaddr": held.mac, "volatile.eth0.host_name": "veth0"}
    row = instance_row("secret", "other", devices={"eth0": {"type": "nic", "network": "br0"}}, config=config)
    await database.write("test", instance_rows.insert, row)
    host.recording.held = [held]
    nic = {"ipv4.address": held.address}
    cases = (("default", "by an instance of another project,"), ("other", "of instance 'secret'"))
    for project, named in cases:
        with pytest.raises(InvalidConfig, match=named):
            await networks.ports.settle_addresses(ref("c1", project), "eth0", "br0", "00:16:3e:00:00:02", nic)


async def test_unknown_types(networks: NetworkManager) -> None:
    with pytest.raises(InvalidRequest, match="Unknown network type 'x': use 'bridge'"):
        await networks.create("default", NetworksPost(name="br0", type="x"))
    with pytest.raises(NotSupportedYet, match="'macvlan' are not supported yet: use 'bridge'"):
        await networks.create("default", NetworksPost(name="br0", type="macvlan"))


async def test_shut_down(networks: NetworkManager, host: Host) -> None:
    await make(networks)
    host.done.clear()
    host.fails["stop"] = HostError("no")
    await networks.shut_down()
    assert host.done == ["stop br0"]


# ---- projects and members


async def test_a_project_without_networks_of_its_own_uses_the_default_ones(
    networks: NetworkManager, database: Database
) -> None:
    await database.write("test", lambda tx: tx.insert(schema.projects, {"name": "other", "description": ""}))
    assert await networks.create("other", NetworksPost(name="br0", config=FIXED)) == "/1.0/networks/br0"
    assert (await stored(database))["br0"].project == "default"
    found = await networks.reader.get("other", "br0")
    assert isinstance(found, Network)
    assert [
        one.row.name for one in await networks.reader.all(EVERYTHING, "other") if isinstance(one, Network)
    ] == ["br0"]
    port = Port(ref("c1", "other"), "eth0", "br0", managed=True, mac="", ipv4="10.9.9.9", ipv6="")
    with pytest.raises(InvalidConfig, match="outside of the network's subnet"):
        await networks.ports.check({port.instance}, [port])
    await networks.delete("other", "br0")
    assert await stored(database) == {}
    with pytest.raises(NotFound, match="Project 'nope' not found"):
        await networks.reader.all(EVERYTHING, "nope")


async def test_a_network_of_another_member_is_pending_until_it_is_created_here(
    networks: NetworkManager, database: Database, host: Host
) -> None:
    async with second_member(database):
        await database.write(
            "test", rows.insert, NetworkRow(0, "default", "br0", config=FIXED, state="ready")
        )
    await networks.start()
    assert host.done == []
    assert (await stored(database))["br0"].state == "pending"
    for change in (
        edit(networks),
        networks.rename("default", "br0", "br1"),
        networks.delete("default", "br0"),
    ):
        with pytest.raises(OtherMember, match="is on host2 only: create it on this member, too"):
            await change
    port = Port(C1, "eth0", "br0", managed=True, mac="", ipv4="", ipv6="")
    with pytest.raises(OtherMember, match="'br0' is on host2 only"):
        await networks.ports.check({C1}, [port])
    with pytest.raises(InvalidConfig, match=r"ipv4\.address of network 'br0' is shared by all members"):
        await make(networks, ipv4_address="10.88.0.1/24")
    await networks.create("default", NetworksPost(name="br0", config={"bridge.external_interfaces": "eth7"}))
    row = (await stored(database))["br0"]
    assert row.config == {**FIXED, "bridge.external_interfaces": "eth7"}
    assert (row.state, row.locations) == ("ready", ("host1", "host2"))
    with pytest.raises(InUse, match="on host1 and host2"):
        await networks.rename("default", "br0", "br1")
    await networks.delete("default", "br0")
    assert (await stored(database))["br0"].state == "pending"


async def test_a_change_by_another_member_is_followed(
    networks: NetworkManager, database: Database, host: Host
) -> None:
    await make(networks)
    row = (await stored(database))["br0"]
    await networks.follow_others()
    async with second_member(database):
        await database.write("test", rows.insert, replace(row, state="ready"))
        changed = replace(row, config={**FIXED, "ipv4.address": "10.66.0.1/24"})
        await database.write("test", rows.update, changed)
    host.done.clear()
    host.fails["change"] = HostError("not now")
    await networks.follow_others()
    await networks.follow_others()
    await networks.follow_others()
    assert host.done == ["change br0 to 10.66.0.1/24"] * 2
