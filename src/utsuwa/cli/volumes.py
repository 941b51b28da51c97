"""The arguments of commands for storage volumes: `<pool> <volume>[/<snapshot>]` and `<pool>/<volume>`."""

from __future__ import annotations

from utsuwa.cli.errors import CommandFailed, UsageError
from utsuwa.client.server import path_to

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.cli.session import Session

_TYPES = ("custom", "image", "container", "virtual-machine")


class Place:
    """A volume, or one of its snapshots, on a pool of a server; of type `custom` without another prefix."""

    def __init__(self, session: Session, pool: str, text: str) -> None:
        self.server, self.pool = session.target(pool)
        if not self.pool:
            raise UsageError("Missing pool name")
        self.text = text
        first, slash, rest = text.partition("/")
        self.type, self.name = (first, rest) if slash and first in _TYPES else ("custom", text)
        self.volume, slash, self.snapshot = self.name.partition("/")
        if "/" in self.snapshot or (slash and not self.snapshot):
            raise UsageError("Invalid snapshot name")

    @property
    def url(self) -> str:
        """The URL of the snapshot, or of the volume."""
        below = ("snapshots", self.snapshot) if self.snapshot else ()
        return path_to("storage-pools", self.pool, "volumes", self.type, self.volume, *below)

    @property
    def kind(self) -> str:
        """The kind of its record in `utsuwa.cli.output.records`."""
        return "volume-snapshot" if self.snapshot else "volume"

    def only_custom(self, done: str) -> Place:
        """Return it, if it is a custom volume. Raises CommandFailed."""
        if self.type != "custom":
            raise CommandFailed(f'Only "custom" volumes can be {done}')
        return self

    def no_snapshot(self, why: str) -> Place:
        """Return it, if it is no snapshot. Raises CommandFailed."""
        if self.snapshot:
            raise CommandFailed(why)
        return self


def split(session: Session, text: str, what: str) -> Place:
    """Return the place of `[<remote>:]<pool>/<volume>[/<snapshot>]`. Raises UsageError."""
    remote, colon, path = text.rpartition(":")
    pool, slash, name = path.partition("/")
    if not slash:
        raise UsageError(f"No storage pool for {what} volume specified")
    return Place(session, f"{remote}{colon}{pool}", name)
