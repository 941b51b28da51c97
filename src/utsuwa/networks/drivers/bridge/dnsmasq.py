"""Generation of dnsmasq's configuration for a bridge from its settings, without access to the host."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from utsuwa.core.errors import InvalidConfig
from utsuwa.networks.drivers.bridge.settings import BridgeSettings, Family
from utsuwa.networks.ports import Port

_UNSAFE = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class DnsmasqFiles:
    """The files of one network's dnsmasq."""

    path: Path

    @property
    def conf(self) -> Path:
        return self.path / "dnsmasq.conf"

    @property
    def raw(self) -> Path:
        return self.path / "dnsmasq.raw"

    @property
    def hosts(self) -> Path:
        """The directory with a file for each device of an instance: its addresses and its name."""
        return self.path / "dnsmasq.hosts"

    @property
    def leases(self) -> Path:
        return self.path / "dnsmasq.leases"

    @property
    def pid(self) -> Path:
        return self.path / "dnsmasq.pid"

    @property
    def argv(self) -> tuple[str, ...]:
        """The command line, by which the process is also identified."""
        return ("dnsmasq", f"--conf-file={self.conf}")


def configuration(bridge: BridgeSettings, files: DnsmasqFiles, user: str, group: str) -> str:
    """Return the text of dnsmasq.conf, which includes the file with `raw.dnsmasq` at its end."""
    return _text(
        (
            *_process(files, user, group),
            f"interface={bridge.name}",
            "bind-interfaces",
            "except-interface=lo",
            *(f"listen-address={address.ip}" for address in bridge.addresses),
            *_names(bridge),
            *(_dhcp(bridge, files)),
            *([f"conf-file={files.raw}"] if bridge.raw_dnsmasq else []),
        )
    )


def _process(files: DnsmasqFiles, user: str, group: str) -> Iterator[str]:
    yield f"user={user}"
    yield f"group={group}"
    yield f"pid-file={files.pid}"
    yield "no-hosts"
    yield "no-ping"
    yield "no-negcache"
    yield "strict-order"


def _names(bridge: BridgeSettings) -> Iterator[str]:
    """Yield the options for DNS. Queries for the bridge's own domain are not forwarded."""
    yield f"domain={bridge.domain}"
    if bridge.dns_mode == "none":
        return
    yield f"local=/{bridge.domain}/"
    yield "expand-hosts"
    yield f"interface-name=_gateway.{bridge.domain},{bridge.name}"
    for family in bridge.families:
        if family.subnet.prefixlen in (8, 16, 24) or family.subnet.version == 6:
            yield f"local=/{_reverse_zone(family)}/"


def _reverse_zone(family: Family) -> str:
    """Return the zone of reverse names, from the labels that the prefix covers completely."""
    bits = 8 if family.subnet.version == 4 else 4
    labels = family.subnet.network_address.reverse_pointer.split(".")
    kept = family.subnet.prefixlen // bits
    return ".".join(labels[len(labels) - 2 - kept :])


def _dhcp(bridge: BridgeSettings, files: DnsmasqFiles) -> Iterator[str]:
    ipv4, ipv6 = bridge.ipv4, bridge.ipv6
    if (ipv4 is not None and ipv4.dhcp) or ipv6 is not None:
        yield from ("dhcp-authoritative", "dhcp-no-override", "dhcp-rapid-commit")
        yield from ("quiet-dhcp", "quiet-dhcp6", "quiet-ra")
        yield f"dhcp-leasefile={files.leases}"
        yield f"dhcp-hostsdir={files.hosts}"
        if bridge.dns_mode != "dynamic":
            yield "dhcp-ignore-names"
        if bridge.search:
            yield f"dhcp-option-force=option:domain-search,{','.join(bridge.search)}"
            yield f"dhcp-option-force=option6:domain-search,{','.join(bridge.search)}"
    if ipv4 is not None and ipv4.dhcp:
        yield from _dhcp4(bridge, ipv4)
    if ipv6 is not None:
        yield from _dhcp6(bridge, ipv6)


def _dhcp4(bridge: BridgeSettings, family: Family) -> Iterator[str]:
    for low, high in family.ranges:
        yield f"dhcp-range={low},{high},{family.subnet.netmask},{family.expiry}"
    if family.gateway:
        yield "dhcp-option-force=3" + ("" if family.gateway == "none" else f",{family.gateway}")
    servers = [str(address) for address in bridge.nameservers if address.version == 4]
    if servers:
        yield f"dhcp-option-force=6,{','.join(servers)}"
    if family.dhcp_routes:
        routes = ",".join(part.strip() for part in family.dhcp_routes.split(","))
        yield f"dhcp-option-force=121,{routes}"
    if bridge.mtu != 1500:
        yield f"dhcp-option-force=26,{bridge.mtu}"


def _dhcp6(bridge: BridgeSettings, family: Family) -> Iterator[str]:
    """Yield the options for router advertisements, which are always enabled, and for DHCPv6 as configured."""
    network = family.subnet.network_address
    if not family.dhcp:
        yield f"dhcp-range={network},ra-only,{family.subnet.prefixlen}"
    elif not family.stateful:
        names = "" if bridge.dns_mode == "none" else ",ra-names"
        yield f"dhcp-range={network},ra-stateless{names},{family.subnet.prefixlen}"
    else:
        for low, high in family.ranges:
            yield f"dhcp-range={low},{high},{family.subnet.prefixlen},{family.expiry}"
    yield "enable-ra"
    if bridge.mtu != 1500:
        yield f"ra-param={bridge.name},mtu:{bridge.mtu},0,0"
    servers = [f"[{address}]" for address in bridge.nameservers if address.version == 6]
    if servers:
        yield f"dhcp-option-force=option6:dns-server,{','.join(servers)}"


_KEYWORDS = frozenset({"ignore", "infinite"})
"""Keywords in a `dhcp-host` line, which dnsmasq only recognizes in lower case."""
_NOT_IN_FILE_NAMES = re.compile(r"[^A-Za-z0-9_.-]")
_LONGEST_FILE_NAME = 255


def host_file(instance: str, device: str) -> str:
    """Return a file name for a device of an instance (with its storage name) that dnsmasq reads.

    It ignores names that begin with a dot, end in `~`, or begin and end with `#`.
    """
    name = _NOT_IN_FILE_NAMES.sub(_percent_encoded, f"{instance}.{device}")
    if len(name) <= _LONGEST_FILE_NAME:
        return name
    return hashlib.sha256(name.encode()).hexdigest()


def _percent_encoded(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode())


def host_name(instance: str) -> str:
    """Return an instance's name in a spelling that `dhcp-host` lines accept.

    dnsmasq converts names with upper-case letters to lower case by the rules of IDN, which reject some valid
    labels (`Ab--c`), so they are passed in lower case. Keywords are capitalized to be read as names.
    """
    lower = instance.lower()
    return lower.capitalize() if lower in _KEYWORDS else lower


def port_file(port: Port) -> str:
    """Return the name of a port's file in the directory of hosts."""
    return host_file(port.instance.storage_name, port.device)


def host_line(port: Port, dns_mode: str) -> str:
    """Return the text of a port's file; empty if it has neither a name nor a static address."""
    parts = [port.mac]
    if port.ipv4 not in ("", "none"):
        parts.append(port.ipv4)
    if port.ipv6 not in ("", "none"):
        parts.append(f"[{port.ipv6}]")
    if dns_mode == "managed" or (len(parts) > 1 and dns_mode != "none"):
        parts.append(host_name(port.instance.name))
    return _text([",".join(parts)]) if len(parts) > 1 else ""


def _text(lines: Iterable[str]) -> str:
    """Join the lines of a config file. Raises InvalidConfig for control characters, such as newlines."""
    checked: Sequence[str] = list(lines)
    for line in checked:
        if _UNSAFE.search(line):
            raise InvalidConfig(
                f"Control characters are not allowed in dnsmasq's configuration: {line[:60]!r}"
            )
    return "".join(f"{line}\n" for line in checked)
