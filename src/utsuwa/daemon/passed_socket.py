"""Socket activation: the listening socket that systemd passes to the daemon when starting it.

The socket belongs to systemd: it exists before the daemon starts and after it ends, so that connections made
meanwhile wait for the next start. Owner and mode are set in its unit.
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
    """Return the socket passed to this process for `path`; None if there is none.

    Programs started from now on do not inherit it or its environment variables. Raises HostError if something
    else was passed.
    """
    given = {name: os.environ.pop(name, "") for name in _VARIABLES}
    if given["LISTEN_PID"] != str(os.getpid()) or not given["LISTEN_FDS"].isdecimal():
        return None
    count = int(given["LISTEN_FDS"])
    if count == 0:
        return None
    if count > 1:
        _close(range(_FIRST, _FIRST + count))
        raise HostError(f"{count} sockets were passed: the unit must have exactly one ListenStream, {path}")
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
        raise HostError(f"The passed descriptor {number} is not a socket: {error}") from error
    try:
        _check(given, path)
    except BaseException:
        given.close()
        raise
    given.setblocking(False)
    return given


def _check(given: socket.socket, path: Path) -> None:
    if given.family != socket.AF_UNIX or not given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise HostError(f"The passed socket does not listen: the unit needs ListenStream={path}")
    name = given.getsockname()
    if not name or os.path.realpath(os.fsdecode(name)) != os.path.realpath(path):
        raise HostError(
            f"The passed socket listens at {os.fsdecode(name) or 'no path'} instead of {path}: "
            f"set ListenStream={path} in the unit, or another UTSUWA_DIR"
        )
