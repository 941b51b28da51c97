"""The devices of instances that are ports of a network, and checks for conflicts between them."""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from utsuwa.core.errors import InvalidConfig
from utsuwa.core.refs import InstanceRef
from utsuwa.networks.subnets import Address

Devices = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Port:
    """One device; its MAC address is empty until one is assigned."""

    instance: InstanceRef
    device: str
    bridge: str
    managed: bool
    """Whether the device specifies a network; otherwise the bridge may be unmanaged."""
    mac: str
    ipv4: str
    ipv6: str
    routes: tuple[str, ...] = ()
    """Subnets that the host routes to the device."""
    running: bool = False
    """Whether it has an interface on the host: its instance is running."""
    here: bool = True
    """Whether the instance is on this member."""

    @property
    def static(self) -> tuple[Address, ...]:
        """Its static addresses."""
        return tuple(
            ipaddress.ip_address(address) for address in (self.ipv4, self.ipv6) if address not in ("", "none")
        )

    def invalid(self, key: str, why: str) -> InvalidConfig:
        return InvalidConfig(f"Invalid device {self.device!r}: {key!r} {why}")


def bridge_of(device: Mapping[str, str]) -> str:
    """Return the bridge of which a device is a port; empty if it is not one."""
    if device.get("type") != "nic":
        return ""
    if device.get("network"):
        return device["network"]
    return device.get("parent", "") if device.get("nictype") == "bridged" else ""


def ports_of(instance: InstanceRef, devices: Devices, config: Mapping[str, str]) -> Iterator[Port]:
    """Yield the ports among an instance's expanded devices; `config` contains its volatile keys."""
    for name, device in devices.items():
        bridge = bridge_of(device)
        if bridge:
            yield Port(
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
    """Return the subnets of a device's `ipv4.routes` and `ipv6.routes` in the kernel's format."""
    parts = [
        part.strip() for key in ("ipv4.routes", "ipv6.routes") for part in device.get(key, "").split(",")
    ]
    return tuple(str(ipaddress.ip_network(part)) for part in parts if part)


Claim = tuple[str, tuple[Hashable, ...]]
"""The key of a device, and the value that must be unique."""


class Others:
    """Index of ports by unique values: addresses, routes, a port per network."""

    def __init__(self, ports: Iterable[Port]) -> None:
        self._holders: defaultdict[Hashable, list[Port]] = defaultdict(list)
        for port in ports:
            for _, claim in (*_routes(port), *_addresses(port)):
                self._holders[claim].append(port)
            self._holders[port.instance, port.bridge].append(port)

    def refuse_taken_routes(self, port: Port) -> None:
        """Raise InvalidConfig if another port has the same route: the host can only have one."""
        self._refuse(port, _routes(port))

    def refuse_taken_addresses(self, port: Port) -> None:
        """Raise InvalidConfig if another port of its network has its MAC address or a static address."""
        self._refuse(port, _addresses(port))
        self._refuse_second(port)

    def _refuse(self, port: Port, claims: Iterable[Claim]) -> None:
        for key, claim in claims:
            for other in self._holders[claim]:
                if not _is_same(port, other):
                    who = describe_port(other, port.instance.project)
                    verb = "leads to" if key.endswith(".routes") else "is taken by"
                    end = " already" if key.endswith(".routes") else ": choose another one"
                    raise port.invalid(key, f"{claim[-1]} {verb} {who}{end}")

    def _refuse_second(self, port: Port) -> None:
        """Reject a second device on a network, whose DNS name would be ambiguous."""
        for other in self._holders[port.instance, port.bridge]:
            if other.device < port.device:
                raise InvalidConfig(
                    f"Invalid device {port.device!r}: the instance DNS name {port.instance.name!r} is "
                    f"used on network {port.bridge!r}, by device {other.device!r}: use another network for "
                    "one of them"
                )


def describe_port(port: Port, project: str) -> str:
    """Return a port's description for a caller in `project`, without names of other projects."""
    if port.instance.project != project:
        return "an instance of another project"
    return f"device {port.device!r} of instance {port.instance.name!r}"


def _routes(port: Port) -> Iterator[Claim]:
    for route in port.routes:
        yield ("ipv6.routes" if ":" in route else "ipv4.routes"), ("route", route)


def _addresses(port: Port) -> Iterator[Claim]:
    if port.mac:
        yield "hwaddr", (port.bridge, port.mac)
    for address in port.static:
        yield f"ipv{address.version}.address", (port.bridge, address)


def _is_same(port: Port, other: Port) -> bool:
    return other.instance == port.instance and other.device == port.device


def refuse_addresses(port: Port) -> None:
    """Check a device on an unmanaged bridge. Raises InvalidConfig."""
    for key, value in (("ipv4.address", port.ipv4), ("ipv6.address", port.ipv6)):
        if value:
            why = f"cannot be set: {port.bridge!r} is not a managed network"
            raise port.invalid(key, why)
