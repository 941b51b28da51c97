"""What the kernel makes wait for around cgroups: moving a process into one, and killing all that is in one.

Before a process moves, the kernel waits until every fork and exit in the whole system goes by a slower
way (an RCU grace period: 8 to 20 ms); further moves within about 15 ms do not wait again. liblxc's
monitor moves once when a container starts and once when it ends. So whoever knows that such a move
is near asks for one ahead, while other work goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

from utsuwa.host.cgroups import tree as cgroups

_STAYS_WARM = 0.008
"""Seconds after one move in which the next one surely does not wait."""
_KEPT_WARM = 0.5
"""Seconds for which `kept_warm` goes on at most."""

_PROC = Path("/proc")
_warmed = 0.0
_running: set[asyncio.Future[None]] = set()


def warm(proc: Path = _PROC) -> None:
    """Have the kernel get ready for a move, by moving this process to where it is. Blocking.

    Nothing changes by that, and nothing is lost where it cannot be done.
    """
    global _warmed
    _warmed = time.monotonic()
    with contextlib.suppress(OSError):
        folder = cgroups.own_folder(proc)
        if folder is not None:
            cgroups.write(folder / "cgroup.procs", "0")
    _warmed = time.monotonic()


def warm_soon() -> None:
    """`warm` beside what else goes on; does nothing where that has just been done."""
    if time.monotonic() - _warmed < _STAYS_WARM:
        return
    future = asyncio.get_running_loop().run_in_executor(None, warm)
    _running.add(future)
    future.add_done_callback(_running.discard)


def moved() -> None:
    """A process has just been moved by somebody else, a helper or liblxc: as good as `warm`."""
    global _warmed
    _warmed = time.monotonic()


@contextlib.asynccontextmanager
async def kept_warm() -> AsyncIterator[None]:
    """Moves in the block, or near its end, do not wait; for half a second at most."""
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
    """The cgroup of a running container in version 2's hierarchy, for `kill_all`; None without one.

    `name` is the container's for liblxc: a cgroup that is not named after it is not given.
    """
    folder = cgroups.folders_of(init_pid, proc).get(cgroups.UNIFIED)
    return folder if folder is not None and cgroups.is_payload_of(folder, name) else None


def kill_all(folder: Path) -> None:
    """Kill all processes in a cgroup at once, where the kernel can (5.14). Blocking: it waits for moves.

    An init that is killed takes its time before it kills the others.
    """
    with contextlib.suppress(OSError):  # an older kernel, or all have just ended
        cgroups.write(folder / "cgroup.kill", "1")
