"""Firewall rules of a bridge.

The chains `in.NAME` and `out.NAME` accept DHCP and DNS between bridge and host, `fwd.NAME` accepts routed
traffic, and `pstrt.NAME` applies source NAT.
"""

from __future__ import annotations

from collections.abc import Iterator

from utsuwa.networks.drivers.bridge.settings import BridgeSettings, Family
from utsuwa.networks.ruleset import (
    ACCEPT,
    REJECT,
    Chain,
    Contribution,
    Passage,
    Rule,
    differs,
    equals,
    meta,
    payload,
)

_SRCNAT = 100
"""nftables' standard priority of source NAT, which Docker uses as well."""
_NEIGHBOURS = ("nd-router-solicit", "nd-neighbor-solicit", "nd-neighbor-advert", "mld2-listener-report")
_ERRORS = ("destination-unreachable", "echo-reply", "echo-request", "parameter-problem", "time-exceeded")
_PING_AND_ERRORS_V6 = (*_ERRORS, "packet-too-big")


def contribution(bridge: BridgeSettings) -> Contribution:
    """Return the rules, without chains that would be empty."""
    chains = (
        Chain("in", "filter", "input", 0, tuple(_services(bridge, "iifname", "dport"))),
        Chain("out", "filter", "output", 0, tuple(_services(bridge, "oifname", "sport"))),
        Chain("fwd", "filter", "forward", 0, tuple(_forwarding(bridge))),
        Chain("pstrt", "nat", "postrouting", _nat_priority(bridge), tuple(_nat(bridge))),
    )
    passages = tuple(
        Passage(bridge.name, family.subnet.version, answers_only=family.nat)
        for family in bridge.families
        if family.firewall and family.routing
    )
    return Contribution(bridge.name, tuple(chain for chain in chains if chain.rules), passages)


def _nat_priority(bridge: BridgeSettings) -> int:
    after = any(family.nat and family.nat_order == "after" for family in bridge.families)
    return _SRCNAT + 10 if after else _SRCNAT - 10


def _services(bridge: BridgeSettings, interface: str, port: str) -> Iterator[Rule]:
    """Yield rules for DNS, DHCP and ICMP errors between host and bridge."""
    for family in bridge.families:
        if family.firewall:
            here = [equals(meta(interface), bridge.name), _is_family(family)]
            services = _services4 if family.subnet.version == 4 else _services6
            for protocol in ("tcp", "udp"):
                yield [*here, equals(payload(protocol, port), 53), ACCEPT]
            yield from ([*here, *rule] for rule in services(family, interface, port))


def _services4(family: Family, interface: str, port: str) -> Iterator[Rule]:
    yield [equals(payload("icmp", "type"), {"set": list(_ERRORS)}), ACCEPT]
    if family.dhcp:
        yield [equals(payload("udp", port), 67), ACCEPT]


def _services6(family: Family, interface: str, port: str) -> Iterator[Rule]:
    routers = "nd-router-advert" if interface == "oifname" else "nd-router-solicit"
    allowed = sorted({*_NEIGHBOURS, *_PING_AND_ERRORS_V6, routers})
    yield [equals(payload("icmpv6", "type"), {"set": allowed}), ACCEPT]
    if family.dhcp:
        yield [equals(payload("udp", port), 547), ACCEPT]


def _forwarding(bridge: BridgeSettings) -> Iterator[Rule]:
    for family in bridge.families:
        if family.firewall:
            verdict = ACCEPT if family.routing else REJECT
            for interface in ("iifname", "oifname"):
                yield [equals(meta(interface), bridge.name), _is_family(family), verdict]


def _nat(bridge: BridgeSettings) -> Iterator[Rule]:
    for family in bridge.families:
        if family.nat:
            yield _nat_of(family)


def _nat_of(family: Family) -> Rule:
    protocol = "ip" if family.subnet.version == 4 else "ip6"
    prefix = {"prefix": {"addr": str(family.subnet.network_address), "len": family.subnet.prefixlen}}
    leaving = [equals(payload(protocol, "saddr"), prefix), differs(payload(protocol, "daddr"), prefix)]
    if family.nat_address:
        return [*leaving, {"snat": {"family": protocol, "addr": family.nat_address}}]
    return [*leaving, {"masquerade": None}]


def _is_family(family: Family) -> dict[str, object]:
    return equals(meta("nfproto"), f"ipv{family.subnet.version}")
