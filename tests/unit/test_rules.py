"""Which programs are told what, so that a network's rules hold beside those of others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from utsuwa.core.errors import ProcessFailed
from utsuwa.host.processes.run import Completed
from utsuwa.networks import firewall
from utsuwa.networks.drivers.bridge.rules import contribution
from utsuwa.networks.drivers.bridge.settings import settings
from utsuwa.networks.firewall import Firewall
from utsuwa.networks.ruleset import Contribution

TABLE = "utsuwa-12345678"
MARK = f"-m comment --comment {TABLE}:br0 -j ACCEPT"


class Host:
    """Plays nft and iptables: chains that are there, rules in Docker's chain."""

    def __init__(self) -> None:
        self.chains: list[dict[str, Any]] = []
        self.docker: list[str] | None = None
        self.docker6: list[str] | None = None
        self.transactions: list[list[dict[str, Any]]] = []

    async def run(
        self, argv: Sequence[str], *, stdin: bytes | None = None, accept: Sequence[int] = (0,)
    ) -> Completed:
        if argv[0] in ("iptables", "ip6tables"):
            return self._iptables(argv, self.docker if argv[0] == "iptables" else self.docker6)
        if stdin is not None:
            self.transactions.append(json.loads(stdin)["nftables"])
            return Completed(tuple(argv), 0, b"", b"")
        wanted = ("family", "table") if argv[3] == "table" else ("family",)
        place = dict(zip(wanted, argv[4:], strict=True))
        found = [{"chain": chain} for chain in self.chains if place.items() <= chain.items()]
        return Completed(tuple(argv), 0, json.dumps({"nftables": found}).encode(), b"")

    def _iptables(self, argv: Sequence[str], chain: list[str] | None) -> Completed:
        if chain is None:
            raise ProcessFailed(argv, 1, "No chain/target/match by that name.")
        verb, rule = argv[2], " ".join(argv[4:])
        match verb:
            case "-I":
                chain.insert(0, rule)
            case "-C" | "-D" if rule not in chain:
                raise ProcessFailed(argv, 1, "Bad rule")
            case "-D":
                chain.remove(rule)
            case _:
                pass
        return Completed(tuple(argv), 0, b"", b"")


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    played = Host()
    monkeypatch.setattr(firewall, "run", played.run)
    monkeypatch.setattr("utsuwa.networks.firewall.shutil.which", lambda name, path: f"/usr/sbin/{name}")
    return played


def bridge(**keys: str) -> Contribution:
    config = {"ipv4.address": "10.1.2.1/24", "ipv4.nat": "true"}
    keys = {key.replace("_", "."): value for key, value in keys.items()}
    return contribution(settings("br0", config | keys, "o"))


def closed(family: str = "ip", name: str = "FORWARD") -> dict[str, Any]:
    return {"family": family, "table": "filter", "name": name, "hook": "forward", "policy": "drop"}


async def test_rules_of_docker_follow_the_settings(host: Host) -> None:
    host.docker = ["-j RETURN", "-i other -j ACCEPT"]
    others = list(host.docker)
    table = Firewall(TABLE)
    await table.apply(bridge())
    answers = f"-o br0 -m conntrack --ctstate RELATED,ESTABLISHED {MARK}"
    assert host.docker == [answers, f"-i br0 {MARK}", *others]
    await table.apply(bridge())
    assert len(host.docker) == 4
    await table.apply(bridge(ipv4_nat="false"))
    assert host.docker == [f"-o br0 {MARK}", f"-i br0 {MARK}", *others]
    await table.apply(bridge(ipv4_routing="false"))
    assert host.docker == others
    await table.apply(bridge())
    await table.remove("br0")
    assert host.docker == others


async def test_docker_with_ipv6(host: Host) -> None:
    host.docker, host.docker6 = [], []
    await Firewall(TABLE).apply(bridge(ipv6_address="fd42:1::1/64"))
    assert host.docker6 == [f"-o br0 {MARK}", f"-i br0 {MARK}"]
    assert len(host.docker) == 2
    await Firewall(TABLE).apply(bridge())
    assert host.docker6 == []


async def test_closed_chains_are_named(host: Host) -> None:
    host.chains = [closed(), closed("ip6"), closed("inet", "deny") | {"policy": "accept"}]
    table = Firewall(TABLE)
    assert await table.apply(bridge()) == ["ip filter FORWARD", "ip6 filter FORWARD"]
    assert await table.apply(bridge(ipv4_routing="false")) == []


async def test_no_warning_if_docker_accepts_our_traffic(host: Host) -> None:
    host.chains, host.docker = [closed()], []
    assert await Firewall(TABLE).apply(bridge()) == []


async def test_table_is_removed_with_its_last_chain(host: Host) -> None:
    table = Firewall(TABLE)
    mine = {"family": "inet", "table": TABLE, "name": "in.br0"}
    host.chains = [mine, mine | {"name": "in.br1"}]
    await table.remove("br0")
    (commands,) = host.transactions
    assert commands[-1] == {"delete": {"chain": mine}}
    host.chains = [mine, mine | {"table": "utsuwa-87654321", "name": "in.br1"}]
    await table.remove("br0")
    assert host.transactions[-1][-1] == {"delete": {"table": {"family": "inet", "name": TABLE}}}


async def test_unused_chains_are_removed(host: Host) -> None:
    host.chains = [{"family": "inet", "table": TABLE, "name": "acl.br0"}]
    await Firewall(TABLE).apply(bridge())
    assert {"delete": {"chain": host.chains[0]}} in host.transactions[0]


async def test_nft_that_fails_is_an_error(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(argv: Sequence[str], **_: Any) -> Completed:
        raise ProcessFailed(argv, None, "not found; install Debian's package 'nftables'")

    monkeypatch.setattr(firewall, "run", fails)
    with pytest.raises(ProcessFailed, match="nftables"):
        await Firewall(TABLE).apply(bridge())
