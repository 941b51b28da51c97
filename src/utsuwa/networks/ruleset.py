"""Firewall rules as values: what each source contributes to the daemon's table, in nftables' JSON.

A source is a network, and later a filter, a forward or an ACL: it knows nothing of the others' rules, and
its chains are named `<part>.<source>`, as LXD names them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Expression = dict[str, Any]
Command = dict[str, Any]
Rule = list[Expression]
"""Matches and a verdict, as nftables' `expr`."""

ACCEPT: Expression = {"accept": None}
REJECT: Expression = {"reject": None}


@dataclass(frozen=True)
class Chain:
    """A chain at one of the kernel's hooks, which accepts what none of its rules judges."""

    part: str
    """What it is for; with the source it makes the name."""
    type: str
    hook: str
    priority: int
    rules: tuple[Rule, ...]


@dataclass(frozen=True)
class Passage:
    """Traffic that others' firewalls have to let through as well: an `accept` of ours does not bind them."""

    interface: str
    version: int
    answers_only: bool
    """Whether only answers have to come in: nobody calls what is behind NAT."""


@dataclass(frozen=True)
class Contribution:
    """All that one source adds."""

    source: str
    chains: tuple[Chain, ...] = ()
    passages: tuple[Passage, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table of nftables that belongs to the daemon alone."""

    family: str
    name: str

    def chain_of(self, source: str, chain: Chain) -> str:
        return f"{chain.part}.{source}"

    def is_of(self, source: str, chain: str) -> bool:
        """Whether a chain that is in the table is one of the source's."""
        return chain.partition(".")[2] == source

    def replacement(self, contribution: Contribution, present: Collection[str]) -> list[Command]:
        """One transaction: the source's rules in place of the chains of it that are `present`."""
        names = {self.chain_of(contribution.source, chain) for chain in contribution.chains}
        commands = [self._add_table(), *self._removal(names.union(present))]
        for chain in contribution.chains:
            name = self.chain_of(contribution.source, chain)
            base = {"type": chain.type, "hook": chain.hook, "prio": chain.priority, "policy": "accept"}
            commands.append({"add": {"chain": {**self._here, "name": name, **base}}})
            commands += [
                {"add": {"rule": {**self._here, "chain": name, "expr": rule}}} for rule in chain.rules
            ]
        return commands

    def removal(self) -> list[Command]:
        """Take the whole table away, where it is there."""
        return [self._add_table(), {"delete": self._whole}]

    def _removal(self, chains: Iterable[str]) -> list[Command]:
        found = [{"chain": {**self._here, "name": name}} for name in sorted(chains)]
        # To add one is no error where it is there, to flush and delete one that is not there would be. One
        # that another refers to cannot be deleted before that one is empty.
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


def meta(key: str) -> Expression:
    return {"meta": {"key": key}}


def payload(protocol: str, field: str) -> Expression:
    return {"payload": {"protocol": protocol, "field": field}}
