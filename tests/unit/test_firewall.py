"""Rules as nftables' JSON: whole transactions, and only what the settings ask for."""

from __future__ import annotations

import json
from typing import Any

from utsuwa.networks import priorities
from utsuwa.networks.drivers.bridge.rules import contribution
from utsuwa.networks.drivers.bridge.settings import settings
from utsuwa.networks.ruleset import ACCEPT, Chain, Contribution, Table, equals, meta

TABLE = Table("inet", "utsuwa-12345678")
NAMES = ("fwd.br0", "in.br0", "out.br0", "pstrt.br0")
BOTH = {"ipv4.address": "10.1.2.1/24", "ipv6.address": "fd42:1::1/64"}


def contributed(**keys: str) -> Contribution:
    config = BOTH | {key.replace("_", "."): value for key, value in keys.items()}
    return contribution(settings("br0", config, "o"))


def commands(**keys: str) -> list[dict[str, Any]]:
    return TABLE.replacement(contributed(**keys), NAMES)


def bases(found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The chains with a hook that are made, by name."""
    chains = [c["add"]["chain"] for c in found if "chain" in c.get("add", {})]
    return {chain["name"]: chain for chain in chains if "hook" in chain}


def rules(found: list[dict[str, Any]], chain: str) -> list[str]:
    return [
        json.dumps(c["add"]["rule"]["expr"])
        for c in found
        if "rule" in c.get("add", {}) and c["add"]["rule"]["chain"] == chain
    ]


def test_everything_is_replaced_in_one_transaction() -> None:
    found = commands(ipv4_nat="true")
    assert found[0] == {"add": {"table": {"family": "inet", "name": "utsuwa-12345678"}}}
    removal = TABLE.replacement(Contribution("br0"), NAMES)
    assert found[: len(removal)] == removal
    chains = bases(found)
    assert {name: (c["type"], c["hook"], c["prio"], c["policy"]) for name, c in chains.items()} == {
        "in.br0": ("filter", "input", 0, "accept"),
        "out.br0": ("filter", "output", 0, "accept"),
        "fwd.br0": ("filter", "forward", 0, "accept"),
        "pstrt.br0": ("nat", "postrouting", 90, "accept"),
    }
    json.dumps(found)


def test_no_rules_without_addresses_or_firewall() -> None:
    assert bases(commands(ipv4_address="none", ipv6_address="none")) == {}
    assert bases(commands(ipv4_firewall="false", ipv6_firewall="false")) == {}
    assert bases(commands(ipv4_firewall="false", ipv6_firewall="false", ipv6_nat="true")).keys() == {
        "pstrt.br0"
    }


def test_services() -> None:
    with_dhcp = " ".join(rules(commands(), "in.br0"))
    assert '"right": 67' in with_dhcp
    assert '"right": 547' in with_dhcp
    without = " ".join(rules(commands(ipv4_dhcp="false", ipv6_dhcp="false"), "in.br0"))
    assert '"right": 67' not in without
    assert '"right": 547' not in without
    assert '"right": 53' in without
    assert "nd-router-advert" in " ".join(rules(commands(), "out.br0"))


def test_routing() -> None:
    found = rules(commands(ipv4_routing="false"), "fwd.br0")
    assert len(found) == 4
    assert ["reject" in rule for rule in found] == [True, True, False, False]
    assert all('"ipv4"' in rule for rule in found[:2])


def test_nat() -> None:
    found = rules(commands(ipv4_nat="true", ipv6_nat="true", ipv6_nat_address="2001:db8::1"), "pstrt.br0")
    assert len(found) == 2
    assert '{"masquerade": null}' in found[0]
    assert '"addr": "10.1.2.0", "len": 24' in found[0]
    assert '{"snat": {"family": "ip6", "addr": "2001:db8::1"}}' in found[1]
    assert bases(commands(ipv4_nat="true", ipv4_nat_order="after"))["pstrt.br0"]["prio"] == 110


def test_removal_names_no_other_network() -> None:
    found = TABLE.replacement(Contribution("br0"), NAMES)[1:]
    assert [next(iter(command)) for command in found] == ["add"] * 4 + ["flush"] * 4 + ["delete"] * 4
    assert {chain["chain"]["name"] for command in found for chain in command.values()} == set(NAMES)
    assert TABLE.removal()[-1] == {"delete": {"table": {"family": "inet", "name": "utsuwa-12345678"}}}
    assert [TABLE.is_of("br0", name) for name in ("in.br0", "in.br0.1", "in.br1", "br0")] == [
        True,
        False,
        False,
        False,
    ]


def test_other_sources_contribute_as_networks_do() -> None:
    rule = [equals(meta("iifname"), "veth1"), ACCEPT]
    found = TABLE.replacement(Contribution("acl1", (Chain("acl", "filter", "forward", 5, (rule,)),)), ())
    assert bases(found)["acl.acl1"]["prio"] == 5
    assert rules(found, "acl.acl1") == [json.dumps(rule)]


def test_passages_are_what_is_routed_and_filtered() -> None:
    found = contributed(ipv4_nat="true", ipv6_routing="false").passages
    assert [(one.interface, one.version, one.answers_only) for one in found] == [("br0", 4, True)]
    assert contributed(ipv4_firewall="false", ipv6_firewall="false").passages == ()


def test_priorities_of_interfaces() -> None:
    """Where packets arrive, and where they are routed: there a port of a bridge is known by its MAC."""
    port = TABLE.replacement(priorities.contribution("veth1", "br0", "00:16:3e:00:00:01", 65538), ())
    assert {name: (c["hook"], c.get("dev")) for name, c in bases(port).items()} == {
        "prioin.veth1": ("ingress", "veth1"),
        "priofwd.veth1": ("forward", None),
    }
    (arriving,), (routed,) = rules(port, "prioin.veth1"), rules(port, "priofwd.veth1")
    assert '"value": "1:2"' in arriving
    assert all(word in routed for word in ('"br0"', '"00:16:3e:00:00:01"', '"value": "1:2"'))
    alone = TABLE.replacement(priorities.contribution("p2p0", "", "00:16:3e:00:00:01", 10), ())
    (routed,) = rules(alone, "priofwd.p2p0")
    assert '"p2p0"' in routed
    assert "00:16:3e" not in routed
    assert '"value": "0:a"' in routed
