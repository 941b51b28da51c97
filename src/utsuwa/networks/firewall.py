"""The daemon's firewall table, and additional rules in chains of others (Docker)."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from utsuwa.core.errors import ProcessFailed
from utsuwa.host.processes.run import PATH, run
from utsuwa.networks.ruleset import Command, Contribution, Passage, Table

_TOOLS = {4: "iptables", 6: "ip6tables"}
_FAMILIES = {4: "ip", 6: "ip6"}
Rule = tuple[str, ...]

_DOCKER_USER = "DOCKER-USER"
"""The chain that Docker provides for others and evaluates before its own rules."""


class Firewall:
    """The rules of this daemon: one nftables table, composed of the contributions of all sources.

    One change at a time, as the table is removed with the last of its chains.
    """

    def __init__(self, name: str) -> None:
        self._table = Table("inet", name)
        self._lock = asyncio.Lock()

    async def apply(self, contribution: Contribution) -> list[str]:
        """Apply a source's contribution, atomically replacing its previous one.

        Returns the chains of others, which this table cannot override, that drop packets of its passages.
        """
        await self.replace(contribution)
        closed = await _closed_chains()
        for version, tool in _TOOLS.items():
            if await self._enter_docker(contribution, version, tool):
                closed = [chain for chain in closed if chain["family"] != _FAMILIES[version]]
        if not contribution.passages:
            return []
        return [f"{chain['family']} {chain['table']} {chain['name']}" for chain in closed]

    async def remove(self, source: str) -> None:
        """Remove a source's rules, also those in chains of others."""
        await self.clear(source)
        await self._leave_docker(source)

    async def replace(self, contribution: Contribution) -> None:
        """As `apply`, for a contribution without passages."""
        async with self._lock:
            present = [name for name in await self._chains() if self._table.is_of(contribution.source, name)]
            await _nft(self._table.replacement(contribution, present))

    async def clear(self, source: str) -> None:
        """Remove a source's rules from the table; the table is removed with its last chain."""
        async with self._lock:
            present = await self._chains()
            mine = [name for name in present if self._table.is_of(source, name)]
            if len(mine) == len(present):
                await _nft(self._table.removal())
            else:
                await _nft(self._table.replacement(Contribution(source), mine))

    async def sources(self, part: str) -> list[str]:
        """Return the sources that have a chain with this purpose; none on a host without nftables."""
        if shutil.which("nft", path=PATH) is None:
            return []
        return self._table.sources(part, await self._chains())

    async def _chains(self) -> list[str]:
        listed = await _chains("table", self._table.family, self._table.name)
        return [chain["name"] for chain in listed]

    async def _enter_docker(self, contribution: Contribution, version: int, tool: str) -> bool:
        """Accept the passages in Docker's chain for others; return whether that chain exists.

        Uses `iptables`: native nftables rules in that table would make it unreadable for Docker's tools.
        """
        if not await _docker_listens(tool):
            return False
        source = contribution.source
        passages = [passage for passage in contribution.passages if passage.version == version]
        wanted = [rule for passage in passages for rule in self._rules_for(source, passage)]
        for rule in wanted:
            if not await _succeeds(tool, "-w", "-C", _DOCKER_USER, *rule):
                await run([tool, "-w", "-I", _DOCKER_USER, *rule])
        await _forget_docker(tool, [rule for rule in self._docker_rules(source) if rule not in wanted])
        return True

    async def _leave_docker(self, source: str) -> None:
        for tool in _TOOLS.values():
            if await _docker_listens(tool):
                await _forget_docker(tool, self._docker_rules(source))

    def _docker_rules(self, source: str) -> Iterator[Rule]:
        """Yield every rule that a network may have there."""
        for answers_only in (True, False):
            yield from self._rules_for(source, Passage(source, 0, answers_only))

    def _rules_for(self, source: str, passage: Passage) -> Iterator[Rule]:
        """Yield the rules for both directions, marked with the daemon's name, as others may have some."""
        mark = ("-m", "comment", "--comment", f"{self._table.name}:{source}", "-j", "ACCEPT")
        answers = ("-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED") if passage.answers_only else ()
        yield ("-i", passage.interface, *mark)
        yield ("-o", passage.interface, *answers, *mark)


async def _closed_chains() -> list[dict[str, Any]]:
    """Return chains of others that drop forwarded packets, which this table cannot override."""
    return [
        chain
        for family in ("ip", "ip6", "inet")
        for chain in await _chains("chains", family)
        if chain.get("hook") == "forward" and chain.get("policy") == "drop"
    ]


async def _forget_docker(tool: str, rules: Iterable[Rule]) -> None:
    for rule in rules:
        while await _succeeds(tool, "-w", "-D", _DOCKER_USER, *rule):
            pass


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


async def _nft(commands: Collection[Command]) -> None:
    await run(["nft", "-j", "-f", "-"], stdin=json.dumps({"nftables": list(commands)}).encode())


async def _chains(*what: str) -> list[dict[str, Any]]:
    """List the chains of a table or a family. Listing all fails if nft cannot show iptables' rules."""
    done = await run(["nft", "-j", "list", *what], accept=(0, 1))
    if done.code != 0:
        return []
    return [entry["chain"] for entry in json.loads(done.stdout)["nftables"] if "chain" in entry]
