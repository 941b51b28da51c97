"""Changes that a kill of the daemon meets, and how what is found after it is judged."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.support.daemon import Daemon

PATIENCE = 30.0
"""Seconds that what ends by itself gets to do so."""

Nic = dict[str, str] | None

Settle = Callable[[bool], None]


class Lost(AssertionError):
    """Something that was there or was told as done is not so, or is so only in part."""


class Leaked(AssertionError):
    """Something is there that belongs to nothing any more."""


@contextlib.contextmanager
def told_as(kind: type[AssertionError]) -> Iterator[None]:
    """What is found not to hold inside is of this kind."""
    try:
        yield
    except (Lost, Leaked):
        raise
    except AssertionError as error:
        raise kind(str(error)) from error


class Request(threading.Thread):
    """One request under way; `done` says whether its success was told before the kill."""

    def __init__(self, daemon: Daemon, method: str, url: str, body: object = None) -> None:
        super().__init__(daemon=True)
        self._daemon, self._method, self._url, self._body = daemon, method, url, body
        self.what = (
            f"{method} {url} {f'({len(body)} bytes)' if isinstance(body, bytes) else body or ''}".strip()[
                :200
            ]
        )
        self.done = False
        self.seconds = 0.0
        """How long it took, where it was done."""
        self.error = ""

    def send(self) -> None:
        """Do it; AssertionError says that it was refused or has failed."""
        self._daemon.do(self._method, self._url, self._body)

    def run(self) -> None:
        began = time.monotonic()
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            try:
                self.send()
                self.seconds = time.monotonic() - began
                self.done = True
            except AssertionError as error:  # refused, or the operation failed
                self.error = str(error)


@dataclass(frozen=True)
class Step:
    """A change that a kill meets: `after` tells the world of it, given whether it was told as done."""

    request: Request
    after: Settle


def same(found: object, wanted: object, what: str) -> None:
    assert found == wanted, f"{what}: {found} instead of {wanted}"


def patiently(check: Callable[[], None]) -> None:
    """Repeat a check until it holds; what ends by itself gets a moment."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            check()
        except AssertionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return
