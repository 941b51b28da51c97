"""Consoles of restored containers: their terminals, and connections to the processes that keep them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
import termios
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from utsuwa.host.processes.run import run_blocking

SOCKET = "console.socket"
"""In an instance's log directory, while its console is kept."""
_KEEPER = Path(__file__).with_name("keeper.py")
_START_TIMEOUT = 10.0
# The program is left to itself: it belongs to the container, not to the daemon.
_LEAVE = '"$@" </dev/null >/dev/null 2>&1 &'


class Console:
    """A connection to a kept console, until `close`."""

    def __init__(self, connection: socket.socket) -> None:
        self.master = connection.detach()
        """Reads what the container prints, and takes what is typed."""
        os.set_blocking(self.master, False)

    def close(self) -> None:
        os.close(self.master)


class Terminal:
    """A new console: `name` is that of its terminal on the host, `life` what the monitor must inherit."""

    def __init__(self, name: str, life: int) -> None:
        self.name = name
        self.life = life


@contextmanager
def kept(folder: Path, log: Path, owner: tuple[int, int]) -> Iterator[Terminal]:
    """Create a terminal, kept by a process of its own that ends when all have closed `life`.

    `folder` is the instance's log directory, `owner` the host's ids of the container's root and of its group
    `tty`. Blocking. Raises OSError, ProcessFailed.
    """
    with ExitStack() as stack:
        master, slave = os.openpty()
        stack.callback(os.close, master)
        stack.callback(os.close, slave)
        fcntl.ioctl(master, termios.TIOCSWINSZ, bytes(8))
        os.fchown(slave, *owner)
        os.fchmod(slave, 0o620)
        ended, life = os.pipe2(os.O_CLOEXEC)
        stack.callback(os.close, life)
        stack.callback(os.close, ended)
        listener = stack.enter_context(_listener(folder))
        descriptors = (master, slave, ended, listener.fileno())
        program = [sys.executable, "-S", "-E", "-I", str(_KEEPER), *map(str, descriptors), str(log)]
        run_blocking(["sh", "-c", _LEAVE, "sh", *program], timeout=_START_TIMEOUT, pass_fds=descriptors)
        yield Terminal(os.ttyname(slave), life)


@contextmanager
def _listener(folder: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, _short(folder) as short:
        (folder / SOCKET).unlink(missing_ok=True)
        listener.bind(f"{short}/{SOCKET}")
        (folder / SOCKET).chmod(0o600)
        listener.listen(1)
        yield listener


@contextmanager
def _short(folder: Path) -> Iterator[str]:
    """Yield a path of a directory that is short enough for the address of a unix socket."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def connect(folder: Path) -> Console | None:
    """Connect to the console of a restored container; None for others. Blocking. Raises OSError."""
    with _short(folder) as short, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(f"{short}/{SOCKET}")
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        return Console(connection)


def forget(folder: Path) -> None:
    """Remove the socket of a console that is not kept any more."""
    with contextlib.suppress(FileNotFoundError):
        (folder / SOCKET).unlink()
