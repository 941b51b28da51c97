"""Keeping the processes of a container from running for a short time, by its cgroup alone.

liblxc's own way connects to the monitor, and on cgroup v1 it looks only once a second whether all processes
are frozen. It also publishes the state, which is not wanted here: users do not see this one.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

from utsuwa.core.errors import HostError
from utsuwa.core.tasks import finish
from utsuwa.host.cgroups import tree as cgroups

PATIENCE = 30.0
"""Seconds to wait for processes that the kernel cannot freeze, such as those that wait for a disk."""
_SHORT = 0.003
"""Seconds that are waited for in the thread; most containers are frozen within one millisecond."""
_FIRST_PAUSE = 0.0002
_LONGEST_PAUSE = 0.02
_PROC = Path("/proc")


@contextlib.asynccontextmanager
async def frozen(
    init_pid: int,
    name: str,
    proc: Path = _PROC,
    *,
    patience: float = PATIENCE,
    unless: Path | None = None,
) -> AsyncIterator[None]:
    """Enter the block when no process of a container runs any more, and thaw it after that.

    It stays frozen if the file `unless` exists then. `name` is the container's name in liblxc. Raises
    HostError, with nothing frozen, if it has ended, if the host has no freezer, or after `patience` seconds.
    """
    folder, file, text = await asyncio.to_thread(_freezer, init_pid, name, proc)
    try:
        if not await finish(asyncio.to_thread(_begin, folder, file, text)):
            await _wait_until_frozen(folder, name, patience)
        yield
    finally:
        await finish(asyncio.to_thread(_end, folder, unless))


def _end(folder: Path, unless: Path | None) -> None:
    if unless is None or not unless.exists():
        cgroups.thaw(folder)


def folder_of(init_pid: int, name: str, proc: Path = _PROC) -> Path:
    """Return the cgroup by which a container is frozen. Blocking. Raises HostError if there is none."""
    return _freezer(init_pid, name, proc)[0]


def _begin(folder: Path, file: str, text: str) -> bool:
    """Begin to freeze; return whether that was done within a moment. Blocking."""
    try:
        cgroups.write(folder / file, text)
    except OSError as error:
        raise HostError(f"The cgroup {folder.name} cannot be frozen: {error.strerror}") from error
    pause, end = _FIRST_PAUSE, time.monotonic() + _SHORT
    while not (done := cgroups.is_frozen(folder)) and time.monotonic() < end:
        time.sleep(pause)
        pause *= 2
    return done


async def _wait_until_frozen(folder: Path, name: str, patience: float) -> None:
    pause, deadline = _SHORT, time.monotonic() + patience
    while not await asyncio.to_thread(cgroups.is_frozen, folder):
        if time.monotonic() > deadline:
            raise HostError(
                f"The processes of {name} could not be frozen within {patience:.0f} s: one of them waits for "
                "a disk or a network file system; try again when that is over, or stop the instance"
            )
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)


def _freezer(init_pid: int, name: str, proc: Path) -> tuple[Path, str, str]:
    """Return the cgroup in the hierarchy that liblxc uses, and what to write to which of its files."""
    folders = cgroups.folders_of(init_pid, proc)
    for key, file, text in (("freezer", "freezer.state", "FROZEN"), (cgroups.UNIFIED, "cgroup.freeze", "1")):
        folder = folders.get(key)
        if folder is not None and cgroups.is_payload_of(folder, name):
            return folder, file, text
    raise HostError(
        f"The processes of {name} cannot be frozen: it has ended, or the host has no cgroup freezer"
    )
