"""Running a client interactively, in a new terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence


def run_in_terminal(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    typed: Sequence[tuple[str, str]] = (),
    rows: int = 24,
    columns: int = 80,
    timeout: float = 30,
) -> tuple[int, str]:
    """Run `argv` on a new pty and return its exit code and all that was on the screen.

    `typed` are pairs (text to wait for, text to type then), processed in order.
    """
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(
        argv, env=dict(env), stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True
    )
    os.close(terminal)
    try:
        screen = _converse(controller, list(typed), time.monotonic() + timeout)
        return process.wait(timeout), screen
    finally:
        process.kill()
        process.wait()
        os.close(controller)


def _converse(controller: int, typed: list[tuple[str, str]], deadline: float) -> str:
    screen, seen = b"", 0
    while True:
        if typed and (at := screen.find(typed[0][0].encode(), seen)) >= 0:
            seen = at + len(typed[0][0])
            os.write(controller, typed.pop(0)[1].encode())
            continue
        left = deadline - time.monotonic()
        assert left > 0, f"timed out, waiting for {typed[:1]}; the screen: {screen.decode(errors='replace')}"
        if not select.select([controller], [], [], left)[0]:
            continue
        data = b""
        with contextlib.suppress(OSError):  # EIO: the other side is closed
            data = os.read(controller, 65536)
        if not data:
            return screen.decode(errors="replace")
        screen += data
