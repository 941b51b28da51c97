"""Recorded trees of /sys and /proc: files, links and directories from a description."""

from __future__ import annotations

import re
from pathlib import Path


def make_tree(root: Path, description: str) -> Path:
    """Make `path = content` (with escapes), `path -> target` and `path/` below `root`, one a line.

    `path += content` adds to a file.
    """
    for line in description.strip().splitlines():
        text = line.strip()
        if not text:
            continue
        if " -> " in text:
            name, target = text.split(" -> ")
            path = _place(root, name)
            path.symlink_to(target if not target.startswith("/") else root / target.lstrip("/"))
        elif text.endswith("/"):
            (root / text).mkdir(parents=True, exist_ok=True)
        else:
            name, mode, content = re.split(r" (\+?=) ", text, maxsplit=1)
            with _place(root, name).open("ab" if mode == "+=" else "wb") as file:
                file.write(content.encode().decode("unicode_escape").encode("latin-1"))
    return root


def _place(root: Path, name: str) -> Path:
    path = root / name.strip()
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
