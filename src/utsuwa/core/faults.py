"""Fault points: named places at which tests kill the daemon, to check how its next start recovers.

If `UTSUWA_FAULTS` is set to a directory in the daemon's environment, each point that is reached appends a
line to the file `reached` there. The file `kill` contains either the name of the point at which the daemon
kills itself, or the number of points to pass before it does. A thread that reaches the point named in the
file `hold` waits there as long as that file exists.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

_folder = os.environ.get("UTSUWA_FAULTS")
_lock = threading.Lock()


def use_folder(folder: Path) -> None:
    """Use a directory as if it had been set in the environment of this process."""
    global _folder
    _folder = str(folder)


def point(name: str) -> None:
    """Record that this point was reached; kill the daemon or wait if the test asks for it."""
    if _folder is not None:
        with _lock:
            _reach(Path(_folder), name)
        _stay(Path(_folder) / "hold", name)


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
