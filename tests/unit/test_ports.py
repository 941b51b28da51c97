"""Ports of networks: found in instances and profiles, and judged beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.instances import instance_row, ref
from tests.support.open_warnings import Judged
from utsuwa.core.errors import InvalidConfig
from utsuwa.db import device_changes
from utsuwa.db import instances as instance_rows
from utsuwa.db import profiles as profile_rows
from utsuwa.db.device_changes import DeviceChange
from utsuwa.db.profiles import ProfileRow
from utsuwa.db.transaction import Answer, Prepared, Transaction
from utsuwa.networks.drivers.bridge.driver import BridgeDriver
from utsuwa.networks.drivers.bridge.servers import Servers
from utsuwa.networks.drivers.bridge.settings import BridgeSettings, settings
from utsuwa.networks.firewall import Firewall
from utsuwa.networks.port_rows import everywhere, of_instances, rivals, with_static_address
from utsuwa.networks.ports import Others, Port, refuse_addresses

NIC = {"type": "nic", "network": "br0"}
PORT = Port(ref("c1"), "eth0", "br0", True, "00:16:3e:00:00:01", "", "")


def check_port(port: Port, network: BridgeSettings, others: Sequence[Port]) -> None:
    BridgeDriver("o", Servers(Path(), Judged()), Firewall("o"), Judged()).check_port(port, network)
    Others(others).refuse_taken_addresses(port)


def bridge(**keys: str) -> BridgeSettings:
    config = {"ipv4.address": "10.1.2.1/24", "ipv6.address": "fd42:1::1/64", "ipv6.dhcp.stateful": "true"}
    return settings("br0", config | {key.replace("_", "."): value for key, value in keys.items()}, "o")


def test_all_ports(tx: Transaction) -> None:
    profiles = [
        ProfileRow(0, "default", "lan", devices={"eth0": NIC, "root": {"type": "disk", "path": "/"}}),
        ProfileRow(0, "default", "fast", devices={"eth0": NIC | {"network": "br1"}}),
    ]
    parent = {"type": "nic", "nictype": "bridged", "parent": "host0", "hwaddr": "00:16:3E:0A:00:00"}
    rows = [
        instance_row("b", profiles=["lan", "fast"], config={"volatile.eth0.hwaddr": "00:16:3e:00:00:01"}),
        instance_row("a", profiles=["lan"], devices={"eth0": {"type": "none"}, "x": parent}),
        instance_row("c", profiles=[], devices={"p": {"type": "nic", "nictype": "p2p", "parent": "y"}}),
        instance_row("d", profiles=["lan"], devices={"eth0": NIC | {"ipv4.address": "10.1.2.9"}}),
    ]
    for profile in profiles:
        profile_rows.insert(tx, profile)
    for row in rows:
        instance_rows.insert(tx, row)
    assert everywhere(tx) == [
        Port(ref("a"), "x", "host0", False, "00:16:3e:0a:00:00", "", ""),
        Port(ref("b"), "eth0", "br1", True, "00:16:3e:00:00:01", "", ""),
        Port(ref("d"), "eth0", "br0", True, "", "10.1.2.9", ""),
    ]


def test_mac_addresses_are_found_by_an_index(tx: Transaction) -> None:
    where = "key LIKE 'volatile.%.hwaddr' AND lower(value) IN ('a')"
    query = f"SELECT instance_id FROM instances_config WHERE {where}"
    if tx.connection.dialect.name == "sqlite":
        assert "instances_config_hwaddr_idx" in str(tx.execute_sql(f"EXPLAIN QUERY PLAN {query}").all())
    else:
        tx.execute_sql("SET LOCAL enable_seqscan = off")
        assert "instances_config_hwaddr_idx" in str(tx.execute_sql(f"EXPLAIN {query}").all())


def test_ports_of_some(tx: Transaction) -> None:
    """What a launch reads, with hundreds of others beside: those that it names, and those in its way."""
    routed = NIC | {"hwaddr": "00:16:3e:00:00:0E", "ipv6.routes": "fd43::/64"}
    for profile in (
        ProfileRow(0, "default", "lan", devices={"eth0": NIC}),
        ProfileRow(0, "default", "fixed", devices={"eth0": NIC | {"ipv4.address": "10.1.2.7"}}),
        ProfileRow(0, "default", "same", devices={"eth0": NIC | {"hwaddr": "00:16:3E:00:00:Aa"}}),
    ):
        profile_rows.insert(tx, profile)
    for row in (
        instance_row("a", profiles=["lan"], config={"volatile.eth0.hwaddr": "00:16:3e:00:00:01"}),
        instance_row("b", profiles=["lan"], config={"volatile.eth0.hwaddr": "00:16:3e:00:00:0B"}),
        instance_row("c", profiles=["fixed"], config={"volatile.eth0.hwaddr": "00:16:3e:00:00:03"}),
        instance_row("d", profiles=["same"]),
        instance_row("e", profiles=[], devices={"eth0": routed}),
        instance_row("f", profiles=[], devices={"eth0": NIC | {"ipv4.address": "10.1.2.6"}}),
    ):
        instance_rows.insert(tx, row)

    def names(ports: list[Port]) -> list[str]:
        return [port.instance.name for port in ports]

    everyone = everywhere(tx)
    assert of_instances(tx, [ref("e"), ref("b"), ref("x")]) == [
        everyone[1],
        everyone[4],
    ]
    assert names(with_static_address(tx, "ipv4.address")) == ["c", "f"]
    new = replace(PORT, instance=ref("new"), mac="")
    assert rivals(tx, [new]) == []
    for number, found in (("01", "a"), ("0b", "b"), ("aa", "d"), ("0e", "e")):
        assert names(rivals(tx, [replace(new, mac=f"00:16:3e:00:00:{number}")])) == [found]
    assert names(rivals(tx, [replace(new, ipv4="10.1.2.9")])) == ["c", "f"]
    assert names(rivals(tx, [replace(new, routes=("10.9.0.0/24",))])) == ["e"]
    assert rivals(tx, [replace(PORT, mac="00:16:3e:00:00:01")]) == [everyone[0]]


def test_ports_that_instances_are_just_getting(tx: Transaction) -> None:
    """Nobody else gets an address that is being given to a running instance, however long that takes."""
    changing = instance_rows.insert(tx, instance_row("a", profiles=[], devices={"eth0": NIC}))
    other = instance_rows.insert(tx, instance_row("b", profiles=[]))
    gone, to_be = DeviceChange(None), DeviceChange(NIC | {"ipv4.address": "10.1.2.9"}, {"host_name": "v"})
    changes = {"eth0": gone, "eth1": to_be, "disk": DeviceChange({"type": "disk", "path": "/x"})}
    device_changes.note(tx, {changing: changes, other: {"eth0": gone}})
    assert device_changes.read(instance_rows.get(tx, ref("a")).data.config) == changes
    new = replace(PORT, instance=ref("new"), mac="", ipv4="10.1.2.9")
    (found,) = rivals(tx, [new])
    assert (found.instance.name, found.device, found.ipv4) == ("a", "eth1", "10.1.2.9")
    with pytest.raises(InvalidConfig, match="taken by device 'eth1' of instance 'a'"):
        Others([found, new]).refuse_taken_addresses(new)
    device_changes.forget(tx, [changing, other, 77])
    assert rivals(tx, [new]) == []
    assert device_changes.read(instance_rows.get(tx, ref("a")).data.config) == {}


class Counting(Transaction):
    """Counts the rows that it is given."""

    def __init__(self, tx: Transaction) -> None:
        super().__init__(tx.connection)
        self.rows = 0

    def fetch(self, query: Prepared, **values: Any) -> list[tuple[Any, ...]]:
        found = super().fetch(query, **values)
        self.rows += len(found)
        return found

    def execute(self, statement: Any, values: Any = None) -> Answer:
        found = super().execute(statement, values)
        self.rows += len(found.all())
        return found


def test_a_launch_reads_no_more_ports_the_more_there_are(tx: Transaction) -> None:
    profile_rows.insert(tx, ProfileRow(0, "default", "lan", devices={"eth0": NIC}))
    new = replace(PORT, instance=ref("new"), mac="00:16:3e:00:01:00")

    def rows_read() -> int:
        counting = Counting(tx)
        assert len(rivals(counting, [new])) == 1
        assert len(of_instances(counting, [ref("c00")])) == 1
        assert with_static_address(counting, "ipv4.address") == []
        return counting.rows

    def add(number: int) -> None:
        mac = f"00:16:3e:00:01:{number:02x}"
        instance_rows.insert(
            tx, instance_row(f"c{number:02}", profiles=["lan"], config={"volatile.eth0.hwaddr": mac})
        )

    for number in range(2):
        add(number)
    few = rows_read()
    for number in range(2, 60):
        add(number)
    assert rows_read() == few


def test_many_ports(tx: Transaction) -> None:
    profile_rows.insert(tx, ProfileRow(0, "default", "lan", devices={"eth0": NIC | {"ipv4.address": "none"}}))
    for number in range(201):
        instance_rows.insert(tx, instance_row(f"c{number:03}", profiles=["lan"]))
    assert with_static_address(tx, "ipv4.address") == everywhere(tx)


def test_good_ports() -> None:
    others = [
        replace(PORT, instance=ref("c2"), mac="00:16:3e:00:00:02", ipv4="10.1.2.8"),
        replace(PORT, instance=ref("c3"), bridge="br1", ipv4="10.1.2.9"),
        PORT,
    ]
    check_port(PORT, bridge(), others)
    check_port(replace(PORT, ipv4="10.1.2.9", ipv6="fd42:1::9"), bridge(), others)
    check_port(replace(PORT, ipv4="none", ipv6="none"), bridge(ipv4_address="none"), others)
    check_port(replace(PORT, mac=""), bridge(), [replace(PORT, instance=ref("c2"), mac="")])


@pytest.mark.parametrize(
    ("port", "keys", "why"),
    [
        (replace(PORT, ipv4="10.1.3.9"), {}, r"10\.1\.3\.9 is outside"),
        (replace(PORT, ipv6="fd43::9"), {}, "fd43::9 is outside"),
        (replace(PORT, ipv4="10.1.2.1"), {}, "bridge's own"),
        (replace(PORT, ipv4="10.1.2.0"), {}, "broadcast address"),
        (replace(PORT, ipv4="10.1.2.255"), {}, "broadcast address"),
        (replace(PORT, ipv4="10.1.2.9"), {"ipv4_address": "none"}, r"has no ipv4\.address"),
        (replace(PORT, ipv4="10.1.2.9"), {"ipv4_dhcp": "false"}, r"lacks ipv4\.dhcp=true"),
        (replace(PORT, ipv6="fd42:1::9"), {"ipv6_dhcp_stateful": ""}, r"lacks ipv6\.dhcp\.stateful=true"),
        (replace(PORT, ipv4="10.1.2.8"), {}, "taken by device 'eth0' of instance 'c2'"),
        (replace(PORT, ipv6="FD42:1::0008"), {}, "taken by device 'eth0' of instance 'c2'"),
        (replace(PORT, mac="00:16:3e:00:00:02"), {}, "00:16:3e:00:00:02 is taken"),
        (replace(PORT, device="eth1", ipv4="10.1.2.8"), {}, "taken"),
    ],
)
def test_bad_ports(port: Port, keys: dict[str, str], why: str) -> None:
    other = replace(PORT, instance=ref("c2"), mac="00:16:3e:00:00:02", ipv4="10.1.2.8", ipv6="fd42:1::8")
    with pytest.raises(InvalidConfig, match=why) as caught:
        check_port(port, bridge(**keys), [PORT, other])
    assert repr(port.device) in str(caught.value)


def test_addresses_are_rejected_on_unmanaged_bridges() -> None:
    refuse_addresses(PORT)
    with pytest.raises(InvalidConfig, match=r"'ipv6\.address' cannot be set"):
        refuse_addresses(replace(PORT, ipv6="fd42::1"))


def test_names_in_other_projects_are_not_revealed() -> None:
    """A network can serve several projects, whose clients need not know each other's instances."""
    taken = Port(ref("secret"), "eth0", "br0", True, "00:16:3e:00:00:01", "", "")
    for project, named in (
        ("default", "device 'eth0' of instance 'secret'"),
        ("other", "of another project"),
    ):
        new = replace(taken, instance=ref("new", project))
        with pytest.raises(InvalidConfig, match=named) as refused:
            Others([taken, new]).refuse_taken_addresses(new)
        assert ("secret" in str(refused.value)) == (project == "default")
