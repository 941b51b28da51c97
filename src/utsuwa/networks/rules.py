"""The daemon's firewall table, and what it needs of rules that belong to others (Docker's)."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Iterator
from typing import Any

from utsuwa.core.errors import ProcessFailed
from utsuwa.host.processes.run import PATH, run
from utsuwa.networks import firewall
from utsuwa.networks.settings import BridgeSettings

log = logging.getLogger(__name__)

_TOOLS = {4: "iptables", 6: "ip6tables"}
_FAMILIES = {4: "ip", 6: "ip6"}
Rule = tuple[str, ...]

_DOCKER_USER = "DOCKER-USER"
"""The chain that Docker leaves to others and asks before its own rules."""


class Rules:
    """The nftables table of this daemon."""

    def __init__(self, table: str) -> None:
        self.table = table
        self._warned: set[tuple[str, str]] = set()

    async def apply(self, bridge: BridgeSettings) -> None:
        """Put a network's rules in force, in place of those that it had, all at once."""
        await _nft(firewall.replace(self.table, bridge))
        closed = await self._closed_chains()
        for version, tool in _TOOLS.items():
            if await self._enter_docker(bridge, version, tool):
                closed = [chain for chain in closed if chain["family"] != _FAMILIES[version]]
        if any(family.firewall and family.routing for family in bridge.families):
            self._warn(bridge.name, closed)

    async def remove(self, network: str) -> None:
        """Take a network's rules away; the table goes with its last chain."""
        await _nft(firewall.remove(self.table, network))
        await self._leave_docker(network)
        listed = await _list("chains", firewall.FAMILY)
        if not any(chain["table"] == self.table for chain in listed):
            await _nft(firewall.remove_table(self.table))

    async def _closed_chains(self) -> list[dict[str, Any]]:
        """Chains of others that drop what is forwarded: accepting in a table of one's own does not help."""
        return [
            chain
            for family in ("ip", "ip6", "inet")
            for chain in await _list("chains", family)
            if chain.get("hook") == "forward" and chain.get("policy") == "drop"
        ]

    def _warn(self, network: str, closed: Iterable[dict[str, Any]]) -> None:
        """Once for each chain, as long as the daemon runs."""
        for chain in closed:
            where = f"{chain['family']} {chain['table']} {chain['name']}"
            if (network, where) not in self._warned:
                self._warned.add((network, where))
                log.warning(
                    "the firewall chain '%s' drops what it does not know: let it accept traffic of the "
                    "bridge %r, or instances there reach nothing outside",
                    where,
                    network,
                )

    async def _enter_docker(self, bridge: BridgeSettings, version: int, tool: str) -> bool:
        """Have Docker's chain for others accept the network; gives whether there is such a chain.

        By `iptables`: rules of nftables' own in that table would hide it from Docker's tools.
        """
        if not await _docker_listens(tool):
            return False
        family = bridge.ipv4 if version == 4 else bridge.ipv6
        wanted: list[Rule] = []
        if family is not None and family.firewall and family.routing:
            # Behind NAT nobody outside calls: answers are enough, and the host stays as closed as it was.
            wanted = [self._way_out(bridge.name), self._way_in(bridge.name, answers=family.nat)]
        for rule in wanted:
            if not await _succeeds(tool, "-w", "-C", _DOCKER_USER, *rule):
                await run([tool, "-w", "-I", _DOCKER_USER, *rule])
        unwanted = [rule for rule in self._docker_rules(bridge.name) if rule not in wanted]
        await self._forget_docker(tool, unwanted)
        return True

    async def _leave_docker(self, network: str) -> None:
        for tool in _TOOLS.values():
            if await _docker_listens(tool):
                await self._forget_docker(tool, self._docker_rules(network))

    async def _forget_docker(self, tool: str, rules: Iterable[Rule]) -> None:
        for rule in rules:
            while await _succeeds(tool, "-w", "-D", _DOCKER_USER, *rule):
                pass

    def _docker_rules(self, network: str) -> Iterator[Rule]:
        """Every rule that a network may have there."""
        yield self._way_out(network)
        yield self._way_in(network, answers=True)
        yield self._way_in(network, answers=False)

    def _way_out(self, network: str) -> Rule:
        return ("-i", network, *self._accept(network))

    def _way_in(self, network: str, *, answers: bool) -> Rule:
        known = ("-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED") if answers else ()
        return ("-o", network, *known, *self._accept(network))

    def _accept(self, network: str) -> Rule:
        """Marked with the daemon's name: other daemons' rules are not ours."""
        return ("-m", "comment", "--comment", f"{self.table}:{network}", "-j", "ACCEPT")


async def _docker_listens(tool: str) -> bool:
    if shutil.which(tool, path=PATH) is None:
        return False
    return await _succeeds(tool, "-w", "-n", "-L", _DOCKER_USER)


async def _succeeds(*argv: str) -> bool:
    try:
        await run(argv)
    except ProcessFailed:
        return False
    return True


async def _nft(commands: list[firewall.Command]) -> None:
    await run(["nft", "-j", "-f", "-"], stdin=json.dumps({"nftables": commands}).encode())


async def _list(what: str, family: str) -> list[dict[str, Any]]:
    """Objects of one family. A list of all fails where a table of iptables' holds what nft cannot show."""
    done = await run(["nft", "-j", "list", what, family], accept=(0, 1))
    if done.code != 0:
        return []
    kind = what.removesuffix("s")
    return [entry[kind] for entry in json.loads(done.stdout)["nftables"] if kind in entry]
