"""The parsed config of a bridge; dependencies between keys are checked on creation."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass

from utsuwa.core.config_keys import parse_bool
from utsuwa.core.errors import InvalidConfig
from utsuwa.core.network_values import parse_ranges
from utsuwa.networks.drivers.bridge.keys import DEFAULT_DOMAIN, check_bridge_config
from utsuwa.networks.subnets import Address, Interface, Subnet

DEFAULT_MTU = 1500


@dataclass(frozen=True)
class Family:
    """The settings of one address family (`ipv4.` or `ipv6.` keys), if it is enabled."""

    address: Interface
    dhcp: bool
    stateful: bool
    """Whether DHCP assigns addresses; always true for IPv4."""
    expiry: str
    ranges: tuple[tuple[Address, Address], ...]
    """The ranges for DHCP; the bridge's own address is never assigned."""
    gateway: str
    """An address, `none`, or empty for the bridge itself."""
    dhcp_routes: str
    firewall: bool
    nat: bool
    nat_address: str
    nat_order: str
    routes: tuple[Subnet, ...]
    routing: bool

    @property
    def subnet(self) -> Subnet:
        return self.address.network

    @property
    def assigns_addresses(self) -> bool:
        return self.dhcp and self.stateful


@dataclass(frozen=True)
class BridgeSettings:
    """All settings of a bridge, its firewall rules and its dnsmasq."""

    name: str
    mtu: int
    mac: str
    external: tuple[str, ...]
    ipv4: Family | None
    ipv6: Family | None
    domain: str
    dns_mode: str
    nameservers: tuple[Address, ...]
    search: tuple[str, ...]
    raw_dnsmasq: str

    @property
    def families(self) -> tuple[Family, ...]:
        return tuple(family for family in (self.ipv4, self.ipv6) if family is not None)

    @property
    def addresses(self) -> tuple[Interface, ...]:
        return tuple(family.address for family in self.families)

    @property
    def subnets(self) -> tuple[Subnet, ...]:
        return tuple(family.subnet for family in self.families)

    @property
    def serves(self) -> bool:
        """Whether the bridge needs a dnsmasq, for addresses, routes or names."""
        return bool(self.families)


def settings(name: str, config: Mapping[str, str], owner: str) -> BridgeSettings:
    """Parse a config without `auto`. Raises InvalidConfig, NotSupportedYet.

    The default MAC address is generated from `owner`, which is unique to the daemon, and the name.
    """
    check_bridge_config(config)
    ipv4, ipv6 = _ipv4(config), _ipv6(config)
    mtu = int(config.get("bridge.mtu") or DEFAULT_MTU)
    return BridgeSettings(
        name=name,
        mtu=mtu,
        mac=(config.get("bridge.hwaddr") or generated_mac(owner, name)).lower(),
        external=_parts(config, "bridge.external_interfaces"),
        ipv4=ipv4,
        ipv6=ipv6,
        domain=config.get("dns.domain") or DEFAULT_DOMAIN,
        dns_mode=config.get("dns.mode") or "managed",
        nameservers=tuple(ipaddress.ip_address(part) for part in _parts(config, "dns.nameservers")),
        search=_parts(config, "dns.search"),
        raw_dnsmasq=config.get("raw.dnsmasq", ""),
    )


def generated_mac(owner: str, name: str) -> str:
    """Return a stable MAC address; without one, the bridge would change it when ports are added."""
    tail = hashlib.sha256(f"{owner}\0{name}".encode()).digest()
    return f"00:16:3e:{tail[0]:02x}:{tail[1]:02x}:{tail[2]:02x}"


def _parts(config: Mapping[str, str], key: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in config.get(key, "").split(",") if part.strip())


def _flag(config: Mapping[str, str], key: str, default: bool) -> bool:
    value = config.get(key, "")
    return parse_bool(value) if value else default


def _ipv4(config: Mapping[str, str]) -> Family | None:
    text = config.get("ipv4.address", "")
    if text in ("", "none"):
        return None
    address = ipaddress.IPv4Interface(text)
    subnet = address.network
    first, last = subnet[1], subnet[-2]
    whole = (
        subnet[2] if address.ip == first else first,
        subnet[-3] if address.ip == last else last,
    )
    gateway = config.get("ipv4.dhcp.gateway", "")
    if gateway not in ("", "none"):
        _inside("ipv4.dhcp.gateway", subnet, ipaddress.IPv4Address(gateway))
    return _family(config, 4, address, whole, stateful=True, gateway=gateway)


def _ipv6(config: Mapping[str, str]) -> Family | None:
    text = config.get("ipv6.address", "")
    if text in ("", "none"):
        return None
    address = ipaddress.IPv6Interface(text)
    subnet = address.network
    stateful = _flag(config, "ipv6.dhcp.stateful", False)
    dhcp = _flag(config, "ipv6.dhcp", True)
    if subnet.prefixlen != 64 and not (stateful and dhcp and subnet.prefixlen > 64):
        raise InvalidConfig(
            f"Invalid value for 'ipv6.address': {subnet} is not a /64, as required by "
            "SLAAC: use a /64, or a smaller subnet with ipv6.dhcp.stateful=true"
        )
    return _family(config, 6, address, (subnet[2], subnet[-1]), stateful=stateful)


def _family(
    config: Mapping[str, str],
    version: int,
    address: Interface,
    whole: tuple[Address, Address],
    *,
    stateful: bool,
    gateway: str = "",
) -> Family:
    prefix = f"ipv{version}"
    return Family(
        address=address,
        dhcp=_flag(config, f"{prefix}.dhcp", True),
        stateful=stateful,
        expiry=config.get(f"{prefix}.dhcp.expiry") or "1h",
        ranges=_ranges(config, version, address, whole),
        gateway=gateway,
        dhcp_routes=config.get("ipv4.dhcp.routes", "") if version == 4 else "",
        firewall=_flag(config, f"{prefix}.firewall", True),
        nat=_flag(config, f"{prefix}.nat", False),
        nat_address=config.get(f"{prefix}.nat.address", ""),
        nat_order=config.get(f"{prefix}.nat.order") or "before",
        routes=tuple(ipaddress.ip_network(part) for part in _parts(config, f"{prefix}.routes")),
        routing=_flag(config, f"{prefix}.routing", True),
    )


def _ranges(
    config: Mapping[str, str], version: int, address: Interface, whole: tuple[Address, Address]
) -> tuple[tuple[Address, Address], ...]:
    key = f"ipv{version}.dhcp.ranges"
    text = config.get(key, "")
    if not text:
        return (whole,)
    ranges = parse_ranges(text, version)
    for low, high in ranges:
        _inside(key, address.network, low)
        _inside(key, address.network, high)
    return tuple(ranges)


def _inside(key: str, subnet: Subnet, address: Address) -> None:
    if address not in subnet:
        raise InvalidConfig(f"Invalid value for {key!r}: {address} is outside of the subnet {subnet}")
