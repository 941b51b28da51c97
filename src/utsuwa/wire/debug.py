"""Records of `/internal/debug`."""

from __future__ import annotations

import msgspec


class Stack(msgspec.Struct, kw_only=True):
    """Where a task or a thread is; `frames` begin with the outermost call, as `FILE:LINE FUNCTION`."""

    name: str
    frames: list[str]


class Memory(msgspec.Struct, kw_only=True):
    """`resident` is in bytes, `types` the number of objects of each of the most frequent types."""

    resident: int
    objects: int
    types: dict[str, int]
