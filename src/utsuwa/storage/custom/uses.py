"""Which custom volumes are in use: by running instances, through which id maps, and by the server itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from utsuwa.core.errors import Busy, InUse, InvalidConfig
from utsuwa.core.idmap import IdMap
from utsuwa.core.refs import InstanceRef
from utsuwa.core.volumes import Volume

Place = tuple[str, Volume]
"""A pool, and a custom volume on it."""


class Uses:
    """Maintained by the devices of instances: while they start and stop, and when the daemon starts."""

    def __init__(self) -> None:
        self._found: dict[tuple[InstanceRef, str], tuple[Place, IdMap]] = {}
        self._excluded: dict[Place, str] = {}
        self._reserved: dict[Place, str] = {}

    def add(self, instance: InstanceRef, device: str, place: Place, idmap: IdMap, *, alike: bool) -> None:
        """Note the use by a device; with `alike`, all instances must have the same id map.

        Raises Busy while the volume is being changed, InUse if the server itself uses it, InvalidConfig if
        another instance has another id map.
        """
        name = place[1].name
        self.check_not_reserved(place)
        if (doing := self._excluded.get(place)) is not None:
            raise Busy(f"The storage volume {name!r} is being {doing}: try again")
        if alike:
            for (other, _), (used, others) in self._found.items():
                if used == place and other != instance and others != idmap:
                    raise InvalidConfig(
                        f"The storage volume {name!r} is in use by the instance {other.name!r}, which has "
                        "another id map: set security.shifted=true on the volume while it is not in use"
                    )
        self._found[instance, device] = (place, idmap)

    def remove(self, instance: InstanceRef, device: str) -> None:
        """The device does not use its volume any more; does nothing if it did not."""
        self._found.pop((instance, device), None)

    def instances(self, place: Place) -> list[InstanceRef]:
        """Return the running instances that use a volume, sorted."""
        return sorted({instance for (instance, _), (used, _) in self._found.items() if used == place})

    def idmap(self, place: Place) -> IdMap | None:
        """Return the id map through which a volume is used; one of them if there are several."""
        return next((idmap for used, idmap in self._found.values() if used == place), None)

    @contextmanager
    def excluded(self, place: Place, doing: str) -> Iterator[None]:
        """Keep running instances from using a volume that is being changed (`renamed`).

        Raises InUse if any does already, or the server itself, Busy during another change.
        """
        name = place[1].name
        self.check_not_reserved(place)
        if users := self.instances(place):
            names = ", ".join(repr(user.name) for user in users)
            raise InUse(
                f"The storage volume {name!r} cannot be {doing} while running instances use it: "
                f"stop {names}, or detach it there"
            )
        if (other := self._excluded.get(place)) is not None:
            raise Busy(f"The storage volume {name!r} is being {other}: try again")
        self._excluded[place] = doing
        try:
            yield
        finally:
            del self._excluded[place]

    def reserve(self, place: Place, key: str) -> None:
        """The server itself uses a volume for what its config `key` says."""
        self._reserved[place] = key

    def release(self, place: Place) -> None:
        """The server itself does not use a volume any more."""
        self._reserved.pop(place, None)

    def check_not_reserved(self, place: Place) -> None:
        """Raise InUse if the server itself uses a volume."""
        if (key := self._reserved.get(place)) is not None:
            raise InUse(f"The storage volume {place[1].name!r} holds files of the server: unset {key} first")
