"""Trees of files that are sent to and received from other servers, as tar archives without an end in sight.

The programs of both sides run in the sandbox of `jail`: the sender sees the tree and may only read, and the
receiver, whose archive may come from anyone, can neither leave the tree nor set attributes that are not a
container's own (`trusted.*`). Owners are taken as they are written. Sockets are left out.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from utsuwa.host.archives.sandbox import MAIN

_ANY_SIZE = "-1"


def sending(tree: Path) -> tuple[list[str], dict[str, str]]:
    """Return the command that writes a tree to stdout, and its environment."""
    return _command("send", tree)


def receiving(tree: Path) -> tuple[list[str], dict[str, str]]:
    """Return the command that reads what `sending` writes into a directory, and its environment."""
    return _command("receive", tree)


def _command(job: str, tree: Path) -> tuple[list[str], dict[str, str]]:
    isolated = [sys.executable, "-S", "-E", "-I", str(MAIN)]
    return [*isolated, str(os.getpid()), "", str(tree.absolute()), "", _ANY_SIZE, job], {}
