"""Lines of lxc.conf that several modules write."""

from __future__ import annotations

import re


def mount_entry(source: str, target: str, kind: str, options: str) -> tuple[str, str]:
    """Return a `lxc.mount.entry` pair; `target` is relative to the container's root."""
    fields = (_escape(source), _escape(target), kind, options)
    return "lxc.mount.entry", " ".join((*fields, "0", "0"))


def _escape(path: str) -> str:
    """Escape white space and backslashes as in fstab."""
    return re.sub(r"[ \t\\]", lambda match: f"\\{ord(match[0]):03o}", path)
