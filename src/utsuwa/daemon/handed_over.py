"""Socket activation: the listening socket that systemd made, and hands over when it starts the daemon.

It is systemd's: it was there before the daemon and stays when the daemon ends, so that connections made
meanwhile wait for the next one. Owner and mode are what its unit says.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from pathlib import Path

from utsuwa.core.errors import HostError

log = logging.getLogger(__name__)

_FIRST = 3
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


def take_socket(path: Path) -> socket.socket | None:
    """The socket that this process was given to listen at `path`; None where it was given none.

    Programs started from here on hear nothing of it, and do not inherit it. Raises HostError where what was
    given is something else.
    """
    given = {name: os.environ.pop(name, "") for name in _VARIABLES}
    if given["LISTEN_PID"] != str(os.getpid()) or not given["LISTEN_FDS"].isdecimal():
        return None
    count = int(given["LISTEN_FDS"])
    if count == 0:
        return None
    if count > 1:
        _close(range(_FIRST, _FIRST + count))
        raise HostError(f"{count} sockets were handed over: the unit may have one ListenStream, {path}")
    return _checked(_FIRST, path)


def _close(numbers: range) -> None:
    for number in numbers:
        with contextlib.suppress(OSError):
            os.close(number)


def _checked(number: int, path: Path) -> socket.socket:
    try:
        os.set_inheritable(number, False)
        given = socket.socket(fileno=number)
    except OSError as error:
        raise HostError(f"What was handed over as descriptor {number} is no socket: {error}") from error
    try:
        _check(given, path)
    except BaseException:
        given.close()
        raise
    given.setblocking(False)
    return given


def _check(given: socket.socket, path: Path) -> None:
    if given.family != socket.AF_UNIX or not given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise HostError(
            f"The socket that was handed over does not listen: the unit needs ListenStream={path}"
        )
    name = given.getsockname()
    if not name or os.path.realpath(os.fsdecode(name)) != os.path.realpath(path):
        raise HostError(
            f"The socket that was handed over listens at {os.fsdecode(name) or 'no path'}, and the state "
            f"folder's is {path}: give the unit ListenStream={path}, or the daemon another UTSUWA_DIR"
        )
