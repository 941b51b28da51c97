"""What is judged, and what is said of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from utsuwa.host.system.probes import Facts
from utsuwa.security import apparmor
from utsuwa.security.idmap import HostIds


class Status(StrEnum):
    FOUND = "found"
    DEGRADED = "degraded"
    """There, but less than it could be."""
    MISSING = "missing"


class Source(StrEnum):
    """Who brings a requirement."""

    HOST = "host"
    """The machine: its kernel, and who started it."""
    SETUP = "setup"
    """Packages and settings, which installing Utsuwa adds."""


@dataclass(frozen=True)
class Verdict:
    """One requirement; `cost` and `remedy` are empty where it was found."""

    name: str
    status: Status
    detail: str
    cost: str = ""
    remedy: str = ""
    source: Source = Source.HOST
    essential: bool = False
    """Whether no container runs without it."""

    @property
    def fatal(self) -> bool:
        return self.essential and self.status is Status.MISSING


@dataclass(frozen=True)
class Subject:
    """What is judged: the host's facts, and what other parts of Utsuwa make of the host."""

    facts: Facts
    ids: HostIds = field(default_factory=lambda: HostIds((), ()))
    apparmor: apparmor.Mode = apparmor.Mode.OFF


def no_program(name: str, package: str, cost: str, note: str = "", *, essential: bool = False) -> Verdict:
    remedy = f"install the package {package}" + (f" ({note})" if note else "")
    return Verdict(name, Status.MISSING, "not installed", cost, remedy, Source.SETUP, essential)


def numbers(version: str) -> tuple[int, ...]:
    """The first two numbers of a version."""
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
