"""What the workers of one test run share: files that are made once, and turns to have the machine alone."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path


@contextmanager
def lock(file: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock of a file among all processes; waits for it. The file is made where it is missing."""
    with file.open("ab") as opened:
        fcntl.flock(opened, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield


@contextmanager
def turn(folder: Path, *, alone: bool) -> Iterator[None]:
    """A test's time: beside those of other workers, or while none of them runs one.

    Who wants to be alone keeps the gate shut while waiting, so that no other goes in first.
    """
    with ExitStack() as held:
        with lock(folder / "gate"):
            held.enter_context(lock(folder / "machine", shared=not alone))
        yield


def once(folder: Path, name: str, make: Callable[[Path], object]) -> Path:
    """The folder `name`, which the first worker that asks for it fills by `make`; the others wait."""
    made = folder / name
    with lock(folder / f"{name}.lock"):
        if not made.exists():
            fresh = folder / f"{name}.new"
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir()
            make(fresh)
            fresh.rename(made)
    return made
