"""The devices of instances that are ports of a network, and how they are judged beside each other."""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from utsuwa.core.errors import InvalidConfig
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
    here: bool = True
    """Whether the instance lives on this daemon's member."""

    @property
    def static(self) -> tuple[Address, ...]:
        """The addresses that it is configured with."""
        return tuple(
            ipaddress.ip_address(address) for address in (self.ipv4, self.ipv6) if address not in ("", "none")
        )

    @property
    def owner(self) -> tuple[str, str]:
        return self.project, self.instance

    def invalid(self, key: str, why: str) -> InvalidConfig:
        return InvalidConfig(f"Invalid device {self.device!r}: {key!r} {why}")


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


Claim = tuple[str, tuple[Hashable, ...]]
"""The key of a device, and what no other device may have by it."""


class Others:
    """Ports by what only one may have: addresses, routes, a place on a network."""

    def __init__(self, ports: Iterable[Port]) -> None:
        self._holders: defaultdict[Hashable, list[Port]] = defaultdict(list)
        for port in ports:
            for _, claim in (*_routes(port), *_addresses(port)):
                self._holders[claim].append(port)
            self._holders[port.owner, port.bridge].append(port)

    def refuse_taken_routes(self, port: Port) -> None:
        """Raise InvalidConfig where another port has a route: the host would keep only one of them."""
        self._refuse(port, _routes(port))

    def refuse_taken_addresses(self, port: Port) -> None:
        """Raise InvalidConfig where another port of its network has its MAC address or a static address."""
        self._refuse(port, _addresses(port))
        self._refuse_second(port)

    def _refuse(self, port: Port, claims: Iterable[Claim]) -> None:
        for key, claim in claims:
            for other in self._holders[claim]:
                if not _is_same(port, other):
                    who = _named(other, port.project)
                    verb = "leads to" if key.endswith(".routes") else "is taken by"
                    end = " already" if key.endswith(".routes") else ""
                    raise port.invalid(key, f"{claim[-1]} {verb} {who}{end}")

    def _refuse_second(self, port: Port) -> None:
        """A name in the network's DNS stands for one device: told of the later one of two."""
        for other in self._holders[port.owner, port.bridge]:
            if other.device < port.device:
                raise InvalidConfig(
                    f"Invalid device {port.device!r}: the instance DNS name {port.instance!r} is already "
                    f"used on network {port.bridge!r}, by device {other.device!r}: use another network for "
                    "one of them"
                )


def _named(port: Port, project: str) -> str:
    """How a message to somebody in `project` calls a port; names of other projects are not for everybody."""
    if port.project != project:
        return "an instance of another project"
    return f"device {port.device!r} of instance {port.instance!r}"


def _routes(port: Port) -> Iterator[Claim]:
    for route in port.routes:
        yield ("ipv6.routes" if ":" in route else "ipv4.routes"), ("route", route)


def _addresses(port: Port) -> Iterator[Claim]:
    if port.mac:
        yield "hwaddr", (port.bridge, port.mac)
    for address in port.static:
        yield f"ipv{address.version}.address", (port.bridge, address)


def _is_same(port: Port, other: Port) -> bool:
    return other.owner == port.owner and other.device == port.device


def refuse_addresses(port: Port) -> None:
    """Judge a device on a bridge of the host's own. Raises InvalidConfig."""
    for key, value in (("ipv4.address", port.ipv4), ("ipv6.address", port.ipv6)):
        if value:
            why = f"cannot be set: {port.bridge!r} is no network of this server, so nobody gives it out"
            raise port.invalid(key, why)
