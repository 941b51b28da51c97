"""Progress of operations: a single rewritten line on a terminal, nothing otherwise."""

from __future__ import annotations

import sys

from utsuwa.client import lean
from utsuwa.client.errors import ApiError
from utsuwa.client.server import succeeded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from utsuwa.client.server import Server

_TEXT = 1
_RUNNING = 200  # final statuses start here


class Line:
    """A terminal line that is overwritten with each update; does nothing if not `active`."""

    def __init__(self, active: bool) -> None:
        self._shown = 0
        self._active = active

    def show(self, text: str) -> None:
        if not self._active or not text:
            return
        import shutil

        text = text[: shutil.get_terminal_size().columns - 1]
        sys.stdout.write("\r" + text + " " * (self._shown - len(text)))
        sys.stdout.flush()
        self._shown = len(text)

    def clear(self) -> None:
        if self._shown:
            sys.stdout.write("\r" + " " * self._shown + "\r")
            sys.stdout.flush()
            self._shown = 0


def wait(server: Server, operation: dict[str, Any], label: str, *, show: bool) -> dict[str, Any]:
    """Wait for an operation and return its record; `show` its progress. Raises ApiError if it failed.

    On KeyboardInterrupt, ask the server to cancel it, and raise the interrupt again.
    """
    try:
        if show:
            return _watch(server, operation, label)
        return server.wait(operation)
    except KeyboardInterrupt:
        try:
            server.close()  # the response of the wait request will not be read
            server.delete(f"/1.0/operations/{operation['id']}")
        except ApiError:
            sys.stderr.write("The operation cannot be cancelled and continues in the background\n")
        raise


def _watch(server: Server, operation: dict[str, Any], label: str) -> dict[str, Any]:
    url = f"/1.0/operations/{operation['id']}"
    line = Line(active=True)
    events = server.listen(["operation"])
    try:
        record = server.get(url)
        while record["status_code"] < _RUNNING:
            line.show(_describe(record, label))
            message = events.receive()
            if message is None:
                return server.wait(operation)
            if message[0] == _TEXT:
                event = lean.loads(message[1].decode())["metadata"]
                record = event if event.get("id") == operation["id"] else record
        return succeeded(record)
    finally:
        line.clear()
        events.close()


def _describe(record: dict[str, Any], label: str) -> str:
    """Return the progress reported by an operation, or the label."""
    for name, value in (record.get("metadata") or {}).items():
        if name.endswith("_progress") and isinstance(value, str):
            return f"{label}: {value}" if label else value
    return label


def counted(chunks: Iterable[bytes], total: int, label: str, *, show: bool) -> Iterator[bytes]:
    """Yield the chunks; with `show`, display the progress out of `total` bytes (0 if unknown)."""
    from utsuwa.cli.output.values import size

    line, done = Line(show), 0
    try:
        for chunk in chunks:
            yield chunk
            done += len(chunk)
            line.show(f"{label}: {done * 100 // total}%" if total else f"{label}: {size(done)}")
    finally:
        line.clear()
