"""Slow cgroup operations of the kernel: moving a process into a cgroup, and killing all processes of one.

Before a process moves, the kernel waits until every fork and exit in the whole system takes a slower path
(an RCU grace period: 8 to 20 ms); further moves within about 15 ms do not wait again. liblxc's monitor
moves once when a container starts and once when it ends. So code that expects such a move performs
another one in advance, in parallel with other work.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

from utsuwa.core.threads import Workers
from utsuwa.host.cgroups import tree as cgroups

_STAYS_WARM = 0.008
"""Seconds after a move in which the next one certainly does not wait."""
_KEPT_WARM = 0.5
"""Maximum duration of `kept_warm` in seconds."""

_PROC = Path("/proc")
_warmed = 0.0
_mover = Workers(1, "cgroups")


def warm(proc: Path = _PROC) -> None:
    """Prepare the kernel for a move by moving this process to its current cgroup. Blocking.

    This changes nothing, and a failure is harmless.
    """
    global _warmed
    _warmed = time.monotonic()
    with contextlib.suppress(OSError):
        folder = cgroups.own_folder(proc)
        if folder is not None:
            cgroups.write(folder / "cgroup.procs", "0")
    _warmed = time.monotonic()


def warm_soon() -> None:
    """Run `warm` in the background, unless that has just been done."""
    if time.monotonic() - _warmed < _STAYS_WARM:
        return
    _mover.run(warm)


def moved() -> None:
    """Note that the helper or liblxc has just moved a process, which has the same effect as `warm`."""
    global _warmed
    _warmed = time.monotonic()


@contextlib.asynccontextmanager
async def kept_warm() -> AsyncIterator[None]:
    """Keep moves from waiting during the block and shortly after it; for half a second at most."""
    task = asyncio.create_task(_keep_warm())
    try:
        yield
    finally:
        task.cancel()


async def _keep_warm() -> None:
    for _ in range(int(_KEPT_WARM / _STAYS_WARM)):
        warm_soon()
        await asyncio.sleep(_STAYS_WARM)


def container_folder(init_pid: int, name: str, proc: Path = _PROC) -> Path | None:
    """Return the cgroup v2 of a running container, for `kill_all`; None if it has none.

    `name` is the container's name in liblxc: a cgroup that is not named after it is not returned.
    """
    folder = cgroups.folders_of(init_pid, proc).get(cgroups.UNIFIED)
    return folder if folder is not None and cgroups.is_payload_of(folder, name) else None


def kill_all(folder: Path) -> None:
    """Kill all processes in a cgroup at once, if the kernel can (5.14). Blocking: it waits for moves.

    An init that is killed on its own takes time to kill the others.
    """
    with contextlib.suppress(OSError):  # an older kernel, or all have just ended
        cgroups.write(folder / "cgroup.kill", "1")
