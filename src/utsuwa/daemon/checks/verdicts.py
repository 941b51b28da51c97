"""The subject of checks, and verdicts."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from utsuwa.host.system.probes import Facts
from utsuwa.security import apparmor
from utsuwa.security.idmap import HostIds


class Status(StrEnum):
    FOUND = "found"
    DEGRADED = "degraded"
    """Available with limitations."""
    MISSING = "missing"


class Source(StrEnum):
    """Who provides a requirement."""

    HOST = "host"
    """The machine: its kernel and its boot configuration."""
    SETUP = "setup"
    """Packages and settings that the installation of Utsuwa adds."""


@dataclass(frozen=True)
class Verdict:
    """A verdict on one requirement; `cost` and `remedy` are empty if it was found."""

    name: str
    status: Status
    detail: str
    cost: str = ""
    remedy: str = ""
    source: Source = Source.HOST
    essential: bool = False
    """Whether containers cannot run without it."""

    @property
    def fatal(self) -> bool:
        return self.essential and self.status is Status.MISSING


@dataclass(frozen=True)
class Subject:
    """The subject of the checks: the host's facts, id ranges and AppArmor mode."""

    facts: Facts
    ids: HostIds = field(default_factory=lambda: HostIds((), ()))
    apparmor: apparmor.Mode = apparmor.Mode.OFF


def no_program(name: str, package: str, cost: str, note: str = "", *, essential: bool = False) -> Verdict:
    remedy = f"install the package {package}" + (f" ({note})" if note else "")
    return Verdict(name, Status.MISSING, "not installed", cost, remedy, Source.SETUP, essential)


def numbers(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version."""
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
