"""The console of a restored container: a small process that holds its terminal as long as the container runs.

liblxc's monitor has no console for a container that it has restored. This process takes its place: it writes
what the container prints to the console's log, which never blocks the container, and connects one client at a
time, by a unix socket. It outlives the daemon, and ends with the monitor.

Started by `console` as `python -S -E -I <this file> <master> <slave> <life> <listener> <log>`: descriptors of
the terminal's two ends, of a pipe whose other end the monitor holds, and of the socket; and the log's path.
The slave is held so that the terminal survives moments in which nothing inside has it open. Uses nothing but
the standard library's core, as its memory is spent for each restored container.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys

LOG_LIMIT = 128 * 1024
"""Maximum size of the log in bytes, as that of liblxc; a full one is begun anew."""
_CHUNK = 16 * 1024


class Keeper:
    """`run` serves until the monitor has ended."""

    def __init__(self, master: int, life: int, listener: socket.socket, log: int) -> None:
        self._master = master
        self._life = life
        self._listener = listener
        self._log = log
        self._client: socket.socket | None = None
        self._poll = select.poll()
        for descriptor in (master, life, listener.fileno()):
            os.set_blocking(descriptor, False)
            self._poll.register(descriptor, select.POLLIN)

    def run(self) -> None:
        while True:
            ready = {descriptor for descriptor, _ in self._poll.poll()}
            if self._listener.fileno() in ready:
                self._accept()
            if self._master in ready:
                self._show()
            if self._client is not None and self._client.fileno() in ready:
                self._listen()
            if self._life in ready:
                self._show()
                return

    def _show(self) -> None:
        """Forward what the container has printed; what a slow client does not take is lost for it."""
        try:
            data = os.read(self._master, _CHUNK)
        except OSError:
            return
        self._write_log(data)
        if self._client is not None:
            try:
                self._client.send(data)
            except BlockingIOError:
                pass
            except OSError:
                self._drop()

    def _write_log(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # a full disk
            if os.fstat(self._log).st_size + len(data) > LOG_LIMIT:
                os.ftruncate(self._log, 0)
            os.write(self._log, data)

    def _listen(self) -> None:
        """Forward what the client has typed."""
        client = self._client
        if client is None:
            return
        try:
            data = client.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop()
            return
        with contextlib.suppress(OSError):  # nobody inside reads it
            os.write(self._master, data)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        self._drop()
        client.setblocking(False)
        self._client = client
        self._poll.register(client.fileno(), select.POLLIN)

    def _drop(self) -> None:
        if self._client is not None:
            self._poll.unregister(self._client.fileno())
            self._client.close()
            self._client = None


def main(arguments: list[str]) -> int:
    master, _slave, life, listener = (int(argument) for argument in arguments[:4])
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    log = os.open(arguments[4], flags, 0o600)
    os.chdir("/")
    Keeper(master, life, socket.socket(fileno=listener), log).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
