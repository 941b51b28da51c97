"""What the process is doing and what its memory holds, for finding out why it is slow or large.

Only places in the code and types are told, no values: these may be secrets.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

_DEPTH = 100
_PARTS = (("cr_frame", "cr_await"), ("gi_frame", "gi_yieldfrom"), ("ag_frame", "ag_await"))
"""The frame and what is awaited, of coroutines, generators and asynchronous generators."""


def tasks() -> dict[str, list[str]]:
    """Return the tasks of the running loop by name, each with where it waits."""
    found: dict[str, list[str]] = {}
    for task in asyncio.all_tasks():
        name = task.get_name()
        found[name if name not in found else f"{name} ({len(found)})"] = list(_awaiting(task.get_coro()))
    return found


def threads() -> dict[str, list[str]]:
    """Return the threads by name, each with its calls."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return {
        f"{names.get(ident, 'unknown')} ({ident})": list(_calls(frame))
        for ident, frame in sys._current_frames().items()
    }


def resident() -> int:
    """Return the memory in use, in bytes. Blocking."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def object_counts() -> Counter[str]:
    """Return the number of objects that the garbage collector knows, by type. Blocking, for long."""
    return Counter(f"{type(found).__module__}.{type(found).__qualname__}" for found in gc.get_objects())


def _awaiting(coroutine: Any) -> Iterator[str]:
    for _ in range(_DEPTH):
        found = next((names for names in _PARTS if hasattr(coroutine, names[0])), None)
        if found is None:
            return
        frame, coroutine = (getattr(coroutine, name) for name in found)
        if frame is not None:
            yield _place(frame)


def _calls(frame: FrameType | None) -> list[str]:
    found: list[str] = []
    while frame is not None and len(found) < _DEPTH:
        found.append(_place(frame))
        frame = frame.f_back
    return found[::-1]


def _place(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_qualname}"
