"""Firewall rules of one bridge as nftables' JSON: a table of the daemon's own, chains named as LXD's.

Chains of a network: `in.NAME` and `out.NAME` let DHCP and DNS through to and from the host, `fwd.NAME`
what is routed, and `pstrt.NAME` gives packets that leave the host's address.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from utsuwa.networks.settings import BridgeSettings, Family

FAMILY = "inet"
PARTS = ("in", "out", "fwd", "pstrt")

Command = dict[str, Any]
Expression = dict[str, Any]

_ACCEPT: Expression = {"accept": None}
_HOOKS: dict[str, tuple[str, str]] = {
    "in": ("filter", "input"),
    "out": ("filter", "output"),
    "fwd": ("filter", "forward"),
    "pstrt": ("nat", "postrouting"),
}
_SRCNAT = 100
"""nftables' usual priority of source NAT, which Docker's rules have too."""
_NEIGHBOURS = ("nd-router-solicit", "nd-neighbor-solicit", "nd-neighbor-advert", "mld2-listener-report")
_ANSWERS = (
    "destination-unreachable",
    "packet-too-big",
    "time-exceeded",
    "parameter-problem",
    "echo-request",
    "echo-reply",
)


def chain(part: str, network: str) -> str:
    return f"{part}.{network}"


def replace(table: str, bridge: BridgeSettings) -> list[Command]:
    """One transaction that puts the network's rules in place of whatever rules it had."""
    rules = {part: list(expressions(part, bridge)) for part in PARTS}
    commands = remove(table, bridge.name)
    for part, found in rules.items():
        if not found:
            continue
        kind, hook = _HOOKS[part]
        priority = _nat_priority(bridge) if part == "pstrt" else 0
        here = {"family": FAMILY, "table": table}
        name = chain(part, bridge.name)
        base = {"type": kind, "hook": hook, "prio": priority, "policy": "accept"}
        commands.append({"add": {"chain": {**here, "name": name, **base}}})
        commands += [{"add": {"rule": {**here, "chain": name, "expr": expression}}} for expression in found]
    return commands


def remove(table: str, network: str) -> list[Command]:
    """One transaction that takes the network's chains away, those that exist; the table stays."""
    here = {"family": FAMILY, "table": table}
    commands: list[Command] = [{"add": {"table": {"family": FAMILY, "name": table}}}]
    for part in PARTS:
        name = chain(part, network)
        commands += [
            {"add": {"chain": {**here, "name": name}}},
            {"flush": {"chain": {**here, "name": name}}},
            {"delete": {"chain": {**here, "name": name}}},
        ]
    return commands


def remove_table(table: str) -> list[Command]:
    """Take the whole table away, where it is there."""
    whole = {"table": {"family": FAMILY, "name": table}}
    return [{"add": whole}, {"delete": whole}]


def _nat_priority(bridge: BridgeSettings) -> int:
    after = any(family.nat and family.nat_order == "after" for family in bridge.families)
    return _SRCNAT + 10 if after else _SRCNAT - 10


def expressions(part: str, bridge: BridgeSettings) -> Iterator[list[Expression]]:
    """The rules of one chain."""
    for family in bridge.families:
        match part:
            case "in":
                yield from _services(bridge.name, family, "iifname", "dport") if family.firewall else ()
            case "out":
                yield from _services(bridge.name, family, "oifname", "sport") if family.firewall else ()
            case "fwd":
                yield from _forwarding(bridge.name, family) if family.firewall else ()
            case _:
                yield from _nat(family) if family.nat else ()


def _services(bridge: str, family: Family, way: str, port: str) -> Iterator[list[Expression]]:
    """Names, addresses and errors between the host and the bridge."""
    here = [_is(_meta(way), bridge), _is_family(family)]
    for protocol in ("tcp", "udp"):
        yield [*here, _is(_payload(protocol, port), 53), _ACCEPT]
    if family.subnet.version == 4:
        yield [*here, _is(_payload("icmp", "type"), {"set": _icmp()}), _ACCEPT]
        if family.dhcp:
            yield [*here, _is(_payload("udp", port), 67), _ACCEPT]
        return
    routers = "nd-router-advert" if way == "oifname" else "nd-router-solicit"
    allowed = sorted({*_NEIGHBOURS, *_ANSWERS, routers})
    yield [*here, _is(_payload("icmpv6", "type"), {"set": allowed}), _ACCEPT]
    if family.dhcp:
        yield [*here, _is(_payload("udp", port), 547), _ACCEPT]


def _icmp() -> list[str]:
    return ["destination-unreachable", "echo-reply", "echo-request", "parameter-problem", "time-exceeded"]


def _forwarding(bridge: str, family: Family) -> Iterator[list[Expression]]:
    verdict: Expression = _ACCEPT if family.routing else {"reject": None}
    for way in ("iifname", "oifname"):
        yield [_is(_meta(way), bridge), _is_family(family), verdict]


def _nat(family: Family) -> Iterator[list[Expression]]:
    protocol = "ip" if family.subnet.version == 4 else "ip6"
    prefix = {"prefix": {"addr": str(family.subnet.network_address), "len": family.subnet.prefixlen}}
    leaving = [
        _is(_payload(protocol, "saddr"), prefix),
        {"match": {"op": "!=", "left": _payload(protocol, "daddr"), "right": prefix}},
    ]
    if family.nat_address:
        yield [*leaving, {"snat": {"family": protocol, "addr": family.nat_address}}]
    else:
        yield [*leaving, {"masquerade": None}]


def _is(left: Expression, right: Any) -> Expression:
    return {"match": {"op": "==", "left": left, "right": right}}


def _is_family(family: Family) -> Expression:
    return _is(_meta("nfproto"), f"ipv{family.subnet.version}")


def _meta(key: str) -> Expression:
    return {"meta": {"key": key}}


def _payload(protocol: str, field: str) -> Expression:
    return {"payload": {"protocol": protocol, "field": field}}
