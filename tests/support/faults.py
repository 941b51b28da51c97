"""Killing a daemon at a fault point of its code, or blocking it there."""

from __future__ import annotations

import contextlib
import http.client
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support.daemon import Daemon


class Faults:
    """The fault points of one daemon; `env` must be added to `Daemon.env` before its start."""

    def __init__(self, folder: Path) -> None:
        self.env = {"UTSUWA_FAULTS": str(folder)}
        self.last = ""
        """The point at which the last `kill_at` found the daemon."""
        self._kill = folder / "kill"
        self._hold = folder / "hold"
        self._reached = folder / "reached"

    def reached(self) -> list[str]:
        """Return the points reached since the last `forget`, in order."""
        return self._reached.read_text().splitlines() if self._reached.exists() else []

    def forget(self) -> None:
        """Clear the list of reached points."""
        self._reached.unlink(missing_ok=True)

    @contextlib.contextmanager
    def hold_at(self, point: str) -> Iterator[None]:
        """Block threads that reach a point until the end of the block."""
        self.forget()
        self._hold.write_text(point)
        try:
            yield
        finally:
            self._hold.unlink()

    def wait_for(self, point: str) -> None:
        """Wait until the point is reached after the last `forget`."""
        deadline = time.monotonic() + 60
        while point not in self.reached():
            assert time.monotonic() < deadline, f"nobody came to the point {point!r}: {self.reached()}"
            time.sleep(0.02)

    @contextlib.contextmanager
    def kill_at(
        self,
        daemon: Daemon,
        point: str | int,
        *,
        meanwhile: Callable[[], object] = lambda: None,
        required: bool = True,
    ) -> Iterator[None]:
        """Run the block, in which the daemon kills itself at a point, and start the daemon again.

        A point is a name, or the number of points before it. `meanwhile` is called while the daemon is not
        running. If the point is not reached, fails if it is `required`, or kills the daemon after the block.
        """
        self.forget()
        self._kill.write_text(str(point))
        try:
            with contextlib.suppress(OSError, http.client.HTTPException):
                yield
        finally:
            self._kill.unlink()
        reached = self.reached()
        self.last = reached[-1] if reached else ""
        daemon.kill()
        met = reached[-1:] == [point] if isinstance(point, str) else len(reached) == point + 1
        assert met or not required, f"the daemon did not end at the point {point!r}: it reached {reached}"
        meanwhile()
        daemon.start()
