"""The daemon's firewall table, and what it needs of rules that belong to others (Docker's)."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from typing import Any

from utsuwa.core.errors import ProcessFailed
from utsuwa.host.run import run
from utsuwa.networks import firewall
from utsuwa.networks.settings import BridgeSettings

log = logging.getLogger(__name__)

_DOCKER_USER = "DOCKER-USER"
"""The chain that Docker leaves to others and asks before its own rules."""


class Rules:
    """The nftables table of this daemon."""

    def __init__(self, table: str) -> None:
        self.table = table
        self._warned: set[str] = set()

    async def apply(self, bridge: BridgeSettings) -> None:
        """Put a network's rules in force, in place of those that it had, all at once."""
        await _nft(firewall.replace(self.table, bridge))
        if any(family.firewall and family.routing for family in bridge.families):
            await self._get_past_others(bridge)

    async def remove(self, network: str) -> None:
        """Take a network's rules away; the table goes with its last chain."""
        await _nft(firewall.remove(self.table, network))
        await self._leave_docker(network)
        listed = await _list("chains", firewall.FAMILY)
        if not any(chain["table"] == self.table for chain in listed):
            await _nft(firewall.remove_table(self.table))

    async def _get_past_others(self, bridge: BridgeSettings) -> None:
        """Accepting in a table of one's own does not help where another one drops what is forwarded."""
        closed = [
            chain
            for chain in [c for f in ("ip", "ip6", "inet") for c in await _list("chains", f)]
            if chain.get("hook") == "forward" and chain.get("policy") == "drop"
        ]
        if await self._enter_docker(bridge.name):
            closed = [chain for chain in closed if chain["family"] != "ip"]
        for chain in closed:
            where = f"{chain['family']} {chain['table']} {chain['name']}"
            if f"{bridge.name} {where}" not in self._warned:
                self._warned.add(f"{bridge.name} {where}")
                log.warning(
                    "the firewall chain '%s' drops what it does not know: let it accept traffic of the "
                    "bridge %r, or instances there reach nothing outside",
                    where,
                    bridge.name,
                )

    async def _enter_docker(self, network: str) -> bool:
        """Have Docker's chain for others accept the network; gives whether there is such a chain.

        By `iptables`: rules of nftables' own in that table would hide it from Docker's tools.
        """
        if shutil.which("iptables") is None or not await _docker_listens():
            return False
        for rule in self._docker_rules(network):
            if not await _succeeds("iptables", "-w", "-C", _DOCKER_USER, *rule):
                await run(["iptables", "-w", "-I", _DOCKER_USER, *rule])
        return True

    async def _leave_docker(self, network: str) -> None:
        if shutil.which("iptables") is None or not await _docker_listens():
            return
        for rule in self._docker_rules(network):
            while await _succeeds("iptables", "-w", "-D", _DOCKER_USER, *rule):
                pass

    def _docker_rules(self, network: str) -> Iterator[tuple[str, ...]]:
        mark = ("-m", "comment", "--comment", f"{self.table}:{network}", "-j", "ACCEPT")
        yield ("-i", network, *mark)
        yield ("-o", network, *mark)


async def _docker_listens() -> bool:
    return await _succeeds("iptables", "-w", "-n", "-L", _DOCKER_USER)


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
