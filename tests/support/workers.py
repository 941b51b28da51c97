"""Coordination of the workers of a test run: shared files, and exclusive use of the machine."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path


@contextmanager
def lock(file: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock of a file, which is created if it does not exist."""
    with file.open("ab") as opened:
        fcntl.flock(opened, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield


@contextmanager
def turn(folder: Path, *, alone: bool) -> Iterator[None]:
    """Run a test concurrently with those of other workers, or exclusively.

    While an exclusive test is waiting, no other test can start.
    """
    with ExitStack() as held:
        with lock(folder / "gate"):
            held.enter_context(lock(folder / "machine", shared=not alone))
        yield


def once(folder: Path, name: str, make: Callable[[Path], object]) -> Path:
    """Return the directory `name`, filled by `make` in the first worker that needs it; the others wait."""
    made = folder / name
    with lock(folder / f"{name}.lock"):
        if not made.exists():
            fresh = folder / f"{name}.new"
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir()
            make(fresh)
            fresh.rename(made)
    return made
