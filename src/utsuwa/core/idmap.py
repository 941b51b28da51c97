"""The user and group ids of a container, and their mapping to ids of the host."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class IdRange:
    """Maps `count` ids starting at `container` inside to the ids starting at `host` on the host."""

    container: int
    host: int
    count: int


@dataclass(frozen=True)
class IdMap:
    """The id map of a container; both empty means privileged: ids are those of the host."""

    uids: tuple[IdRange, ...] = ()
    gids: tuple[IdRange, ...] = ()

    @property
    def privileged(self) -> bool:
        return not self.uids

    def host_uid(self, container: int) -> int:
        return _host_id(self.uids, container)

    def host_gid(self, container: int) -> int:
        return _host_id(self.gids, container)


def _host_id(ranges: tuple[IdRange, ...], container: int) -> int:
    """Return the host's id for a container's. Raises ValueError if it is not mapped."""
    if not ranges:
        return container
    for r in ranges:
        if r.container <= container < r.container + r.count:
            return r.host + container - r.container
    raise ValueError(f"id {container} is not mapped")
