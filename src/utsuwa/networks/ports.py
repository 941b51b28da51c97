"""The devices of instances that are ports of a network: found in the rows, judged against each other."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from utsuwa.core.errors import InvalidConfig
from utsuwa.core.names import storage_name
from utsuwa.db import nics
from utsuwa.db.transaction import Transaction
from utsuwa.networks.dnsmasq import Host, host_file
from utsuwa.networks.settings import BridgeSettings, Family
from utsuwa.networks.subnets import Address

Devices = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Port:
    """One device; its MAC address is empty while the instance has not been given one."""

    project: str
    instance: str
    device: str
    bridge: str
    managed: bool
    """Whether the device names a network; the bridge may be one of the host's otherwise."""
    mac: str
    ipv4: str
    ipv6: str
    routes: tuple[str, ...] = ()
    """Subnets that the host reaches over the device."""
    running: bool = False
    """Whether it has an interface on the host now: its instance runs."""

    @property
    def static(self) -> tuple[Address, ...]:
        """The addresses that it is configured with."""
        return tuple(
            ipaddress.ip_address(address) for address in (self.ipv4, self.ipv6) if address not in ("", "none")
        )

    @property
    def owner(self) -> tuple[str, str]:
        return self.project, self.instance

    def host(self) -> Host:
        """What dnsmasq is told of it."""
        file = host_file(storage_name(self.project, self.instance), self.device)
        return Host(file=file, mac=self.mac, ipv4=self.ipv4, ipv6=self.ipv6, name=self.instance)


def bridge_of(device: Mapping[str, str]) -> str:
    """The bridge that a device is a port of; empty where it is none."""
    if device.get("type") != "nic":
        return ""
    if device.get("network"):
        return device["network"]
    return device.get("parent", "") if device.get("nictype") == "bridged" else ""


def ports_of(project: str, instance: str, devices: Devices, config: Mapping[str, str]) -> Iterator[Port]:
    """The ports among an instance's merged devices; `config` holds its volatile keys."""
    for name, device in devices.items():
        bridge = bridge_of(device)
        if bridge:
            yield Port(
                project=project,
                instance=instance,
                device=name,
                bridge=bridge,
                managed=bool(device.get("network")),
                mac=(device.get("hwaddr") or config.get(f"volatile.{name}.hwaddr", "")).lower(),
                ipv4=device.get("ipv4.address", ""),
                ipv6=device.get("ipv6.address", ""),
                routes=routes_of(device),
                running=bool(config.get(f"volatile.{name}.host_name")),
            )


def routes_of(device: Mapping[str, str]) -> tuple[str, ...]:
    """The subnets of a device's `ipv4.routes` and `ipv6.routes`, as the kernel writes them."""
    parts = [
        part.strip() for key in ("ipv4.routes", "ipv6.routes") for part in device.get(key, "").split(",")
    ]
    return tuple(str(ipaddress.ip_network(part)) for part in parts if part)


def all_ports(tx: Transaction) -> list[Port]:
    """The ports of all instances, by project, instance and device."""
    found = [
        port
        for row in nics.get_all(tx)
        for port in ports_of(row.project, row.instance, row.devices, row.config)
    ]
    return sorted(found, key=lambda port: (port.project, port.instance, port.device))


def check_port(port: Port, bridge: BridgeSettings, others: Collection[Port]) -> None:
    """Judge a device of an instance beside the network and its `others`. Raises InvalidConfig."""
    for version, family in ((4, bridge.ipv4), (6, bridge.ipv6)):
        text = port.ipv4 if version == 4 else port.ipv6
        if text not in ("", "none"):
            _check_static(port, bridge, family, f"ipv{version}.address", text)
    for other in others:
        if other.bridge != port.bridge or _is_same(port, other):
            continue
        who = f"device {other.device!r} of instance {other.instance!r}"
        if port.mac and other.mac == port.mac:
            raise _invalid(port, "hwaddr", f"{port.mac} is taken by {who}")
        for key, mine, theirs in (
            ("ipv4.address", port.ipv4, other.ipv4),
            ("ipv6.address", port.ipv6, other.ipv6),
        ):
            if mine not in ("", "none") and theirs not in ("", "none") and _same(mine, theirs):
                raise _invalid(port, key, f"{mine} is taken by {who}")
    _check_only_one(port, others)


def _check_only_one(port: Port, others: Collection[Port]) -> None:
    """A name in the network's DNS stands for one device: told of the later one of two."""
    for other in others:
        if other.owner == port.owner and other.bridge == port.bridge and other.device < port.device:
            raise InvalidConfig(
                f"Invalid device {port.device!r}: the instance DNS name {port.instance!r} is already used on "
                f"network {port.bridge!r}, by device {other.device!r}: use another network for one of them"
            )


def check_routes(port: Port, others: Collection[Port]) -> None:
    """Refuse a route that another device has (InvalidConfig): the host would keep only one of them."""
    for other in others:
        taken = sorted(set(port.routes) & set(other.routes))
        if taken and not _is_same(port, other):
            key = "ipv6.routes" if ":" in taken[0] else "ipv4.routes"
            who = f"device {other.device!r} of instance {other.instance!r}"
            raise _invalid(port, key, f"{taken[0]} leads to {who} already")


def _is_same(port: Port, other: Port) -> bool:
    return other.owner == port.owner and other.device == port.device


def check_unmanaged(port: Port) -> None:
    """Judge a device on a bridge of the host's own. Raises InvalidConfig."""
    for key, value in (("ipv4.address", port.ipv4), ("ipv6.address", port.ipv6)):
        if value:
            why = f"cannot be set: {port.bridge!r} is no network of this server, so nobody gives it out"
            raise _invalid(port, key, why)


def _check_static(port: Port, bridge: BridgeSettings, family: Family | None, key: str, text: str) -> None:
    protocol = key[:4]
    if family is None:
        raise _invalid(port, key, f"cannot be set: the network {bridge.name!r} has no {protocol}.address")
    if not family.gives_addresses:
        needed = f"{protocol}.dhcp" if not family.dhcp else f"{protocol}.dhcp.stateful"
        raise _invalid(port, key, f"cannot be set: the network {bridge.name!r} lacks {needed}=true")
    address = ipaddress.ip_address(text)
    if address not in family.subnet:
        raise _invalid(port, key, f"{text} is outside of the network's subnet {family.subnet}")
    if address in (family.address.ip, family.subnet.network_address) or (
        address.version == 4 and address == family.subnet.broadcast_address
    ):
        raise _invalid(port, key, f"{text} is the bridge's own or stands for the whole subnet")


def _same(one: str, other: str) -> bool:
    return ipaddress.ip_address(one) == ipaddress.ip_address(other)


def _invalid(port: Port, key: str, why: str) -> InvalidConfig:
    return InvalidConfig(f"Invalid device {port.device!r}: {key!r} {why}")
