"""Waiting until commits are on disk, for many transactions at a time."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future, ThreadPoolExecutor

from utsuwa.core.errors import HostError
from utsuwa.db.engine import Engine

log = logging.getLogger(__name__)


class Durability:
    """A thread that has the engine sync its commits. Thread-safe.

    A sync covers all commits before its beginning: those that are requested while another one runs share the
    next one.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="database-sync")
        self._lock = threading.Lock()
        self._next: Future[None] | None = None
        """The sync that has not begun yet."""
        self._latest: Future[None] | None = None
        """The sync that was requested last."""
        self._unsynced = False
        """Whether anything was committed for which nobody has requested a sync."""

    def note(self) -> None:
        """Note a commit for which nobody waits: the next request covers it."""
        self._unsynced = True

    def settle(self) -> Future[None] | None:
        """As `request`, but without another sync if there is nothing to sync; None if there never was."""
        return self.request() if self._unsynced else self._latest

    def request(self) -> Future[None]:
        """Return what is done when everything that is committed by now is on disk.

        It raises HostError if that fails, which is logged as well: not everybody waits for it.
        """
        with self._lock:
            if self._next is None:
                self._next = self._latest = self._thread.submit(self._sync)
            self._unsynced = False
            return self._next

    def close(self) -> Future[None]:
        """End the thread after the syncs that were requested."""
        closed = self._thread.submit(lambda: None)
        self._thread.shutdown(wait=False)
        return closed

    def _sync(self) -> None:
        with self._lock:  # what is committed from now on needs another one
            self._next = None
        try:
            self._engine.settle()
        except OSError as error:
            log.error("%s cannot be synced to disk: %s", self._engine.name, error)
            raise HostError(f"{self._engine.name} cannot be synced to disk: {error.strerror}") from error
