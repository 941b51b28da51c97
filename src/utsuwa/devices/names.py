"""Names of entries in the directory of an instance's devices, the same as in LXD."""

from __future__ import annotations

import hashlib
import os

_LONGEST = 200
"""Maximum number of bytes of a name; file systems allow 255."""


def entry_name(kind: str, device: str, path: str = "") -> str:
    """Return the name for a device, and its path inside if it has one; distinct for distinct arguments."""
    inside = [_encoded(path.removeprefix("/"))] if path else []
    parts = [kind, _encoded(device).replace(".", "-."), *inside]
    name = ".".join(parts)
    if len(os.fsencode(name)) <= _LONGEST:
        return name
    return f"{kind}.{hashlib.sha256(os.fsencode(name)).hexdigest()}"


def _encoded(text: str) -> str:
    return text.replace("-", "--").replace("/", "-")
