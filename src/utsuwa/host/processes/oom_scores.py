"""Adjustments of the scores by which the kernel chooses a process to kill when memory is short. Blocking."""

from __future__ import annotations

import contextlib
import errno
import re
from pathlib import Path

from utsuwa.core.errors import InvalidConfig
from utsuwa.host.cgroups import tree as cgroups
from utsuwa.host.mounts.userns import in_user_namespace

OOM_SCORE_MIN = -1000
_PROC = Path("/proc")
_CAP_SYS_RESOURCE = 24
KEY = "limits.memory.oom_priority"


def lowest(proc: Path = _PROC) -> int:
    """Return the lowest adjustment that this process may set.

    Without CAP_SYS_RESOURCE in the initial user namespace, the kernel lets nobody go below what they have.
    """
    try:
        own_score = own(proc)
        nested = in_user_namespace(proc)
        status = (proc / "self/status").read_text()
    except OSError:
        return OOM_SCORE_MIN
    capabilities = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)
    allowed = capabilities is None or int(capabilities[1], 16) >> _CAP_SYS_RESOURCE & 1
    return OOM_SCORE_MIN if allowed and not nested else own_score


def own(proc: Path = _PROC) -> int:
    """Return the adjustment of this process, which those that it starts inherit."""
    return int((proc / "self/oom_score_adj").read_text())


def change(init: int, wanted: int, proc: Path = _PROC) -> int | None:
    """Change the adjustment of a container: of its init, and of its processes that have the same one.

    Processes whose adjustment was changed inside (`OOMScoreAdjust=` of systemd) keep it. Returns the previous
    adjustment; None, and does nothing, if the container has ended. Raises InvalidConfig if it is refused.
    """
    file = proc / f"{init}/oom_score_adj"
    try:
        had = int(file.read_text())
        if had == wanted:
            return had
        # Init last, so that an interrupted change can be repeated; then those that it started meanwhile.
        _change_members(init, had, wanted, proc)
        file.write_text(str(wanted))
        _change_members(init, had, wanted, proc)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESRCH):
            return None
        raise InvalidConfig(f"Cannot set {KEY!r} to {wanted}: {error.strerror}") from error
    return had


def _change_members(init: int, had: int, wanted: int, proc: Path) -> None:
    folders = cgroups.folders_of(init, proc)
    top = folders.get("pids", folders.get(cgroups.UNIFIED))
    for pid in cgroups.processes(top) - {init} if top else ():
        file = proc / f"{pid}/oom_score_adj"
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if int(file.read_text()) == had:
                file.write_text(str(wanted))
