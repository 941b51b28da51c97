"""How far one caller reaches: the projects that are there for them, and what they may configure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from utsuwa.core.urls import project_of


@dataclass(frozen=True)
class Policy:
    """What a configuration may hold; judged when all of it is merged."""

    restricted: bool = False
    """Whether it is wanted by somebody who is held to some projects."""
    unprivileged_only: bool = False
    """Whether the daemon's operator allows unprivileged instances only."""


@dataclass(frozen=True)
class Scope:
    """What is there for a caller. Lists, lookups, operations and events all ask the same scope."""

    projects: frozenset[str] | None = None
    """None for every project, and for what is in none."""
    policy: Policy = Policy()
    certificate: str | None = None
    """The fingerprint of the one certificate that is there; None for every one."""
    root: bool = field(default=False, compare=False)
    """Whether it is the host's root, whose images the kernel may mount."""

    @property
    def restricted(self) -> bool:
        return self.projects is not None

    def sees(self, project: str) -> bool:
        """Whether objects of `project` are there; it is empty for what is in no project."""
        return self.projects is None or project in self.projects

    def visible(self, urls: Iterable[str]) -> list[str]:
        """Those of the URLs whose objects are there, as `used_by` lists have them."""
        return [url for url in urls if self.projects is None or project_of(url) in self.projects]


EVERYTHING = Scope()
"""The daemon's own, and that of callers who are held to nothing."""

NOTHING = Scope(frozenset(), Policy(restricted=True), "")
"""That of callers who are not trusted: what is public is all that there is."""
