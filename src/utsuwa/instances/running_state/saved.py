"""The files of a saved running state: CRIU's images, and a record of what a restore has to provide."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from utsuwa.core.errors import InvalidRequest, TooLarge
from utsuwa.host.files.atomic import read_below, replace_below
from utsuwa.host.files.filetree import remove_tree

FOLDER = "state"
"""In the directory of an instance's or a snapshot's volume, as in LXD."""
FRESH = "state.new"
"""The same while it is being saved."""
USED = "used"
"""The file that exists as soon as restored processes run: from then on, the state is obsolete."""
_RECORD = "utsuwa.json"
_VERSION = 1
_MAX_RECORD = 1 << 20

_Path = Annotated[str, msgspec.Meta(pattern=r"^/[^\x00-\x1f\[\]]{0,4095}\Z")]
_Tty = Annotated[str, msgspec.Meta(pattern=r"^tty\[[0-9a-f]{1,16}:[0-9a-f]{1,16}\]\Z")]
_Interface = Annotated[str, msgspec.Meta(pattern=r"^[^\s/:\[\]]{1,15}\Z")]
_PATH = re.compile(r"/[^\x00-\x1f\[\]]{0,4095}\Z")


class Record(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a restore has to provide in place of what the saved container had of the host."""

    criu: str
    kernel: str
    idmap: str
    """As in `volatile.idmap.current`."""
    mounts: Annotated[list[_Path], msgspec.Meta(max_length=10_000)]
    """The mount points inside."""
    nics: Annotated[list[_Interface], msgspec.Meta(max_length=1000)]
    """The names of interfaces inside that have an end on the host."""
    tty: _Tty
    """The console's terminal, as CRIU identifies it."""
    version: Annotated[int, msgspec.Meta(ge=_VERSION, le=_VERSION)] = _VERSION


@dataclass(frozen=True)
class Saved:
    """A saved running state that can be restored."""

    folder: Path
    record: Record
    own: bool
    """Whether it is the instance's, which is removed once it is restored, and not a snapshot's."""


def can_be_named(path: str) -> bool:
    """Return whether CRIU's options can name a mount point."""
    return _PATH.match(path) is not None


def store(folder: Path, record: Record) -> None:
    """Complete a saved state by its record. Blocking.

    CRIU opens the images as the container's root as well, from a descriptor of the directory. The directory
    of the volume lets nobody else pass.
    """
    for entry in folder.iterdir():
        entry.chmod(0o644)
    folder.chmod(0o711)
    replace_below(folder, _RECORD, msgspec.json.encode(record))


def load(folder: Path, what: str, *, own: bool) -> Saved:
    """Load the saved state in the directory of a volume; `what` names the owner in messages.

    Blocking. Raises InvalidRequest if there is none, it is damaged, or its processes have run since.
    """
    place = folder / FOLDER
    try:
        data = read_below(place, _RECORD, _MAX_RECORD)
        if data is None:
            raise InvalidRequest(f"{what} has no saved running state")
        record = msgspec.json.decode(data, type=Record)
        if own and (place / USED).exists():
            raise InvalidRequest(f"The saved running state of {what} is older than its disk")
    except FileNotFoundError:
        raise InvalidRequest(f"{what} has no saved running state") from None
    except (OSError, TooLarge, msgspec.DecodeError) as error:
        raise InvalidRequest(f"The saved running state of {what} is damaged: {error}") from error
    return Saved(place, record, own)


def begin(folder: Path) -> Path:
    """Make the empty directory for a state that is about to be saved. Blocking."""
    fresh = folder / FRESH
    remove_tree(fresh)
    fresh.mkdir(mode=0o700)
    return fresh


def publish(fresh: Path, folder: Path) -> None:
    """Give a complete state its place in the directory of a volume. Blocking."""
    remove_tree(folder / FOLDER)
    fresh.rename(folder / FOLDER)


def remove(folder: Path) -> None:
    """Remove saved states, complete or not, from the directory of a volume, if there are any. Blocking."""
    remove_fresh(folder)
    if os.path.lexists(folder / FOLDER):
        remove_tree(folder / FOLDER)


def remove_fresh(folder: Path) -> None:
    """Remove what an attempt to save a state has left. Blocking."""
    if os.path.lexists(folder / FRESH):
        remove_tree(folder / FRESH)


def exists(folder: Path) -> bool:
    """Return whether the directory of a volume has any. Blocking."""
    return any(os.path.lexists(folder / name) for name in (FOLDER, FRESH))


def is_obsolete(folder: Path) -> bool:
    """Return whether there is no complete state, or its processes have run since it was saved. Blocking."""
    place = folder / FOLDER
    return not (place / _RECORD).exists() or (place / USED).exists()


def tidy(folder: Path, *, keep: bool) -> None:
    """Remove incomplete states, and the complete one unless it is to be kept. Blocking."""
    (remove_fresh if keep else remove)(folder)


def sync(folder: Path) -> None:
    """Have the files of a state survive a power failure. Blocking."""
    for entry in folder.iterdir():
        descriptor = os.open(entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    for place in (folder, folder.parent):
        descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
