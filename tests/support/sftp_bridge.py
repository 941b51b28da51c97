"""Connects standard input and output with the SFTP endpoint of an instance: for `sftp -D`."""

from __future__ import annotations

import os
import socket
import sys
import threading


def connect(path: str, url: str) -> socket.socket:
    """Return a connection that carries SFTP from now on; exits with the reply if the daemon refuses."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect(path)
        request = f"GET {url} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: sftp\r\n\r\n"
        sock.sendall(request.encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += sock.recv(1) or sys.exit(head.decode())
        if b" 101 " not in head:
            sys.exit(head.decode() + sock.recv(4096).decode())
    except BaseException:
        sock.close()
        raise
    return sock


def main(path: str, url: str) -> None:
    with connect(path, url) as sock:

        def back() -> None:
            while data := sock.recv(65536):
                os.write(1, data)
            os._exit(0)

        threading.Thread(target=back, daemon=True).start()
        while data := os.read(0, 65536):
            sock.sendall(data)


if __name__ == "__main__":
    main(*sys.argv[1:])
