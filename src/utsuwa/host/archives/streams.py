"""Trees of files that are sent to and received from other servers, as tar archives without an end in sight.

The programs of both sides run in the sandbox of `jail`: the sender sees the tree and may only read, and the
receiver, whose archive may come from anyone, can neither leave the tree nor set attributes that are not a
container's own (`trusted.*`). Owners are taken as they are written. Sockets are left out.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from utsuwa.host.archives.jail import TOLD_SIZE
from utsuwa.host.archives.sandbox import MAIN

_ANY_SIZE = "-1"
_Command = tuple[list[str], dict[str, str]]


def sending(tree: Path) -> _Command:
    """Return the command that writes a tree to stdout, and its environment."""
    return _command(*_words("send", tree))


def receiving(tree: Path) -> _Command:
    """Return the command that reads what `sending` writes into a directory, and its environment."""
    return _command(*_words("receive", tree))


def waiting() -> _Command:
    """Return the command that first reads from stdin what it does, and its environment.

    Most of the time that a sandbox takes passes before it has to know that.
    """
    return _command()


def to_send(tree: Path) -> bytes:
    """Return what has a waiting program do what that of `sending` does."""
    return _told("send", tree)


def to_receive(tree: Path) -> bytes:
    """Return what has a waiting program do what that of `receiving` does."""
    return _told("receive", tree)


def _told(job: str, tree: Path) -> bytes:
    data = os.fsencode("\0".join(_words(job, tree)))
    return len(data).to_bytes(TOLD_SIZE, "big") + data


def _words(job: str, tree: Path) -> tuple[str, ...]:
    return "", str(tree.absolute()), "", _ANY_SIZE, job


def _command(*words: str) -> _Command:
    isolated = [sys.executable, "-S", "-E", "-I", str(MAIN)]
    return [*isolated, str(os.getpid()), *words], {}
