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
from utsuwa.host.processes.run import run_blocking
from utsuwa.storage.drivers.failures import translated

FOLDER = "state"
"""In the directory of an instance's or a snapshot's volume, as in LXD."""
FRESH = "state.new"
"""The same while it is being saved."""
ROUND = "state.round"
"""The memory of a running instance that is being moved, as it was when it was sent or received last."""
USED = "used"
"""The file that exists as soon as restored processes run: from then on, the state is obsolete."""
_RECORD = "utsuwa.json"
_VERSION = 1
_MAX_RECORD = 1 << 20
_COPY_TIMEOUT = 3600.0

# Why a running state is not copied, and what to do.
KEEPS_NAME = "is only copied to an instance of the same name"
UNRESTRICTED = "can only be copied by callers without restrictions"
INSTEAD = "use --stateless"

_Pages = Annotated[str, msgspec.Meta(pattern=r"^pages-[0-9]{1,9}\.img\Z")]
_Path = Annotated[str, msgspec.Meta(pattern=r"^/[^\x00-\x1f\[\]]{0,4095}\Z")]
_Tty = Annotated[str, msgspec.Meta(pattern=r"^tty\[[0-9a-f]{1,16}:[0-9a-f]{1,16}\]\Z")]
_Interface = Annotated[str, msgspec.Meta(pattern=r"^[^\s/:\[\]]{1,15}\Z")]
_Address = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{2}(:[0-9a-f]{2}){5}\Z")]
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
    hwaddrs: Annotated[dict[_Interface, _Address], msgspec.Meta(max_length=1000)] = {}
    """Their MAC addresses, which a restore brings back."""
    tty: _Tty
    """The console's terminal, as CRIU identifies it."""
    pages: Annotated[dict[_Pages, int], msgspec.Meta(max_length=10_000)] = {}
    """The sizes of the images with memory: CRIU waits forever for what is missing in them."""
    of_snapshot: bool = False
    """Whether an instance was made of a snapshot: since then, the peers of its connections have gone on."""
    version: Annotated[int, msgspec.Meta(ge=_VERSION, le=_VERSION)] = _VERSION


@dataclass(frozen=True)
class Saved:
    """A saved running state that can be restored."""

    folder: Path
    record: Record
    own: bool
    """Whether it is the instance's, which is removed once it is restored, and not a snapshot's."""

    @property
    def keeps_connections(self) -> bool:
        """Whether the peers of its connections can have waited for it."""
        return self.own and not self.record.of_snapshot


def can_be_named(path: str) -> bool:
    """Return whether CRIU's options can name a mount point."""
    return _PATH.match(path) is not None


def store(folder: Path, record: Record) -> None:
    """Complete a saved state by its record. Blocking."""
    _let_criu_read(folder)
    record.pages = _pages(folder)
    replace_below(folder, _RECORD, msgspec.json.encode(record))


def _let_criu_read(folder: Path) -> None:
    """Let CRIU open the images as the container's root as well, from a descriptor of the directory.

    The directory of the volume lets nobody else pass.
    """
    for entry in folder.iterdir():
        entry.chmod(0o644)
    folder.chmod(0o711)


def complete(folder: Path) -> None:
    """Give a state that was received its place in the directory of a volume. Blocking."""
    _let_criu_read(folder / FRESH)
    sync(folder / FRESH)
    publish(folder / FRESH, folder)


@translated
def copy_snapshot(source: Path, target: Path) -> None:
    """Give a new instance, whose volume's directory is `target`, a copy of the state of a snapshot.

    Blocking. Raises OutOfSpace, HostError, and as `load`.
    """
    fresh = begin(target)
    run_blocking(
        ["cp", "-a", "--reflink=auto", "--", f"{source / FOLDER}/.", str(fresh)], timeout=_COPY_TIMEOUT
    )
    complete(target)
    own_from_snapshot(target, "the snapshot")


def own_from_snapshot(folder: Path, what: str) -> None:
    """Note that a complete state was that of a snapshot. Blocking. Raises as `load`, and OSError."""
    found = load(folder, what, own=True)
    found.record.of_snapshot = True
    replace_below(found.folder, _RECORD, msgspec.json.encode(found.record))


def _pages(folder: Path) -> dict[str, int]:
    return {file.name: file.lstat().st_size for file in folder.glob("pages-*.img")}


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
        if not record.pages.items() <= _pages(place).items():
            raise InvalidRequest(f"The saved running state of {what} is damaged: its memory is not complete")
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


def keep_round(fresh: Path, kept: Path) -> None:
    """Keep a saved state as that of a round. Blocking."""
    remove_tree(kept)
    fresh.rename(kept)


def begin_round(folder: Path) -> Path:
    """Make the empty directory for a round that is about to be received; the one before is kept. Blocking."""
    if (folder / FRESH).exists():
        keep_round(folder / FRESH, folder / ROUND)
    return begin(folder)


def complete_received(folder: Path, idmap: str) -> None:
    """Give a state that was received its place in the directory of a volume. Blocking.

    Its images are for this id map, as in `volatile.idmap.current`. The round before is removed with it later,
    as the container is frozen now. Raises InvalidRequest if it is damaged.
    """
    _let_criu_read(folder / FRESH)
    publish(folder / FRESH, folder)
    record = load(folder, "the instance", own=True).record
    if record.idmap != idmap:
        record.idmap = idmap
        replace_below(folder / FOLDER, _RECORD, msgspec.json.encode(record))


def publish(fresh: Path, folder: Path) -> None:
    """Give a complete state its place in the directory of a volume. Blocking."""
    remove_tree(folder / FOLDER)
    fresh.rename(folder / FOLDER)


def remove(folder: Path) -> None:
    """Remove saved states, complete or not, from the directory of a volume, if there are any. Blocking."""
    for name in (FOLDER, FRESH, ROUND):
        if os.path.lexists(folder / name):
            remove_tree(folder / name)


def remove_fresh(folder: Path) -> None:
    """Remove what an attempt to save a state has left. Blocking."""
    if os.path.lexists(folder / FRESH):
        remove_tree(folder / FRESH)


def exists(folder: Path) -> bool:
    """Return whether the directory of a volume has any. Blocking."""
    return any(os.path.lexists(folder / name) for name in (FOLDER, FRESH, ROUND))


def is_obsolete(folder: Path) -> bool:
    """Return whether there is no complete state, or its processes have run since it was saved. Blocking."""
    place = folder / FOLDER
    return not (place / _RECORD).exists() or (place / USED).exists()


def tidy(folder: Path, *, keep: bool) -> None:
    """Remove incomplete states, and the complete one unless it is to be kept. Blocking."""
    if not keep:
        remove(folder)
        return
    for name in (FRESH, ROUND):
        if os.path.lexists(folder / name):
            remove_tree(folder / name)


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
