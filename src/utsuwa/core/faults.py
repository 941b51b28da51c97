"""Fault points: named places at which tests kill the daemon, to see what its next start makes of it.

With `UTSUWA_FAULTS` in the daemon's environment, which names a folder, each point that is reached adds a line
to the file `reached` there. The file `kill` names the point at which the daemon kills itself, or holds the
number of points that it still passes before it does. A thread that comes to the point which the file `hold`
names stays there as long as the file does.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

_FOLDER = os.environ.get("UTSUWA_FAULTS")
_lock = threading.Lock()


def point(name: str) -> None:
    """This point is reached. Costs nothing where no test looks."""
    if _FOLDER is not None:
        with _lock:
            _reach(Path(_FOLDER), name)
        _stay(Path(_FOLDER) / "hold", name)


def _reach(folder: Path, name: str) -> None:
    with (folder / "reached").open("a") as file:
        file.write(f"{name}\n")
    kill = folder / "kill"
    try:
        wanted = kill.read_text()
    except FileNotFoundError:
        return
    if wanted in (name, "0"):
        os.kill(os.getpid(), signal.SIGKILL)
    if wanted.isdigit():
        kill.write_text(str(int(wanted) - 1))


def _stay(hold: Path, name: str) -> None:
    with suppress(FileNotFoundError):
        while hold.read_text() == name:
            time.sleep(0.01)
