"""A TCP relay whose connections can be cut: a network that fails, for programs that must cope with it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator


class Relay:
    """Passes bytes between `address` and a target, while it is `up`."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.up = True
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Cut all connections, and let none be made."""
        self.up = False
        for connection in list(self._open):
            _cut(connection)

    def close(self) -> None:
        _cut(self._server)
        self._server.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        host, _, port = self.target.rpartition(":")
        with near, contextlib.suppress(OSError):
            if not self.up:
                return
            with socket.create_connection((host, int(port))) as far:
                self._open |= {near, far}
                back = threading.Thread(target=_pass, args=(far, near), daemon=True)
                back.start()
                _pass(near, far)
                back.join()
                self._open -= {near, far}


def _pass(source: socket.socket, target: socket.socket) -> None:
    """Pass all bytes on; the end of either direction is that of the connection."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    _cut(source)
    _cut(target)


def _cut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def relay(target: str) -> Iterator[Relay]:
    made = Relay(target)
    try:
        yield made
    finally:
        made.close()
