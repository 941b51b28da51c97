"""Files that are given as the difference to another one, in the format VCDIFF."""

from __future__ import annotations

import shutil
from pathlib import Path

from utsuwa.host.archives.sandbox import UnpackLimits, judge, run_job
from utsuwa.host.processes.run import PATH
from utsuwa.host.processes.stopper import Stopper

_SECONDS = 900
_RESULT = "patched"


def can_apply() -> bool:
    """Return whether the program for deltas is installed."""
    return shutil.which("xdelta3", path=PATH) is not None


def apply_delta(base: Path, delta: Path, folder: Path, size: int, stopper: Stopper) -> Path:
    """Create the file that a delta leads to from the file `base`, in a folder, and return its path; blocking.

    The delta is untrusted; what it makes has at most `size` bytes, rounded up to a KiB, and may be anything.
    Raises InvalidImage, OutOfSpace, ProcessFailed (also if stopped).
    """
    limits = UnpackLimits(size, 1, _SECONDS)
    ended = run_job(delta, folder, limits, "delta", _RESULT, base=base, stopper=stopper)
    judge(ended, "xdelta3")
    return folder / _RESULT
