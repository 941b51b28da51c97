"""Lines of lxc.conf that more than one part writes."""

from __future__ import annotations

import re


def mount_entry(source: str, target: str, kind: str, options: str) -> tuple[str, str]:
    """A `lxc.mount.entry` pair; `target` is relative to the container's root."""
    fields = (_escape(source), _escape(target), kind, options)
    return "lxc.mount.entry", " ".join((*fields, "0", "0"))


def _escape(path: str) -> str:
    """White space and backslashes as fstab writes them."""
    return re.sub(r"[ \t\\]", lambda match: f"\\{ord(match[0]):03o}", path)
