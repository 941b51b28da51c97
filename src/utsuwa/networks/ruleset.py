"""Firewall rules as values: the contributions of sources to the daemon's table, in nftables' JSON.

A source is a network or an interface of an instance, and later a filter, a forward or an ACL. Its rules are
independent of others, and its chains are named `<part>.<source>`, as in LXD.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Expression = dict[str, Any]
Command = dict[str, Any]
Rule = list[Expression]
"""Matches and a verdict, as nftables' `expr`."""

ACCEPT: Expression = {"accept": None}
REJECT: Expression = {"reject": None}


@dataclass(frozen=True)
class Chain:
    """A chain at one of the kernel's hooks, with the policy accept."""

    part: str
    """Its purpose, which is the first part of its name."""
    type: str
    hook: str
    priority: int
    rules: tuple[Rule, ...]
    device: str = field(default="", kw_only=True)
    """The interface of a chain at the hook `ingress`. The kernel may remove it along with that."""


@dataclass(frozen=True)
class Passage:
    """Traffic that other firewalls must accept as well: they are not bound by this table's `accept`."""

    interface: str
    version: int
    answers_only: bool
    """Whether only replies must be let in, as for addresses behind NAT."""


@dataclass(frozen=True)
class Contribution:
    """All rules of one source."""

    source: str
    chains: tuple[Chain, ...] = ()
    passages: tuple[Passage, ...] = ()


@dataclass(frozen=True)
class Table:
    """An nftables table that belongs to the daemon alone."""

    family: str
    name: str

    def chain_of(self, source: str, chain: Chain) -> str:
        return f"{chain.part}.{source}"

    def is_of(self, source: str, chain: str) -> bool:
        """Return whether a chain of the table belongs to the source."""
        return chain.partition(".")[2] == source

    def sources(self, part: str, chains: Iterable[str]) -> list[str]:
        """Return the sources of those chains of the table that have this purpose."""
        return [chain.partition(".")[2] for chain in chains if chain.partition(".")[0] == part]

    def replacement(self, contribution: Contribution, present: Collection[str]) -> list[Command]:
        """Return one transaction that replaces the source's chains that are `present`."""
        names = {self.chain_of(contribution.source, chain) for chain in contribution.chains}
        commands = [self._add_table(), *self._removal(names.union(present))]
        for chain in contribution.chains:
            name = self.chain_of(contribution.source, chain)
            base = {"type": chain.type, "hook": chain.hook, "prio": chain.priority, "policy": "accept"}
            base |= {"dev": chain.device} if chain.device else {}
            commands.append({"add": {"chain": {**self._here, "name": name, **base}}})
            commands += [
                {"add": {"rule": {**self._here, "chain": name, "expr": rule}}} for rule in chain.rules
            ]
        return commands

    def removal(self) -> list[Command]:
        """Return the commands that remove the table if it exists."""
        return [self._add_table(), {"delete": self._whole}]

    def _removal(self, chains: Iterable[str]) -> list[Command]:
        found = [{"chain": {**self._here, "name": name}} for name in sorted(chains)]
        # Adding an existing one is not an error, flushing and deleting a missing one would be. One that
        # another refers to cannot be deleted before that one is empty.
        return [{verb: chain} for verb in ("add", "flush", "delete") for chain in found]

    def _add_table(self) -> Command:
        return {"add": self._whole}

    @property
    def _whole(self) -> Mapping[str, Any]:
        return {"table": {"family": self.family, "name": self.name}}

    @property
    def _here(self) -> dict[str, str]:
        return {"family": self.family, "table": self.name}


def equals(left: Expression, right: Any) -> Expression:
    return {"match": {"op": "==", "left": left, "right": right}}


def differs(left: Expression, right: Any) -> Expression:
    return {"match": {"op": "!=", "left": left, "right": right}}


def sets(what: Expression, value: str) -> Expression:
    return {"mangle": {"key": what, "value": value}}


def meta(key: str) -> Expression:
    return {"meta": {"key": key}}


def payload(protocol: str, field: str) -> Expression:
    return {"payload": {"protocol": protocol, "field": field}}
