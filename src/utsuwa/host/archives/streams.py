"""Trees of files that are sent to and received from other servers, as tar archives without an end in sight.

The programs of both sides run in the sandbox of `jail`: the sender sees the tree and may only read, and the
receiver, whose archive may come from anyone, can neither leave the tree nor set attributes that are not a
container's own (`trusted.*`). Owners are taken as they are written. Sockets are left out.

These commands are for one tree. Layers, of which there are several and small ones, pass through sandboxes of
the helper (`host.helper.sandboxes`), which take less time to begin.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from utsuwa.host.archives.jail import ANY_SIZE
from utsuwa.host.archives.sandbox import MAIN

_Command = tuple[list[str], dict[str, str]]


def sending(tree: Path) -> _Command:
    """Return the command that writes a tree to stdout, and its environment."""
    return _command("send", tree)


def receiving(tree: Path) -> _Command:
    """Return the command that reads what `sending` writes into a directory, and its environment."""
    return _command("receive", tree)


def _command(job: str, tree: Path) -> _Command:
    isolated = [sys.executable, "-S", "-E", "-I", str(MAIN)]
    return [*isolated, str(os.getpid()), "", str(tree.absolute()), "", str(ANY_SIZE), job], {}
