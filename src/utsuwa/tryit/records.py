"""Feedback and statistics: lines of JSON, without an address, a name or a time of day."""

from __future__ import annotations

import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from utsuwa.core.errors import InvalidConfig
from utsuwa.core.threads import in_thread
from utsuwa.wire.codec import encode

log = logging.getLogger(__name__)

_MOST = 64 * 2**20
"""Bytes of one file; nothing is added to a longer one."""


class Records:
    """The two files, which are opened while the process may still create them."""

    def __init__(self, folder: Path) -> None:
        """Raises InvalidConfig."""
        try:
            folder.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._feedback = _open(folder / "feedback.jsonl")
            self._statistics = _open(folder / "statistics.jsonl")
        except OSError as error:
            raise InvalidConfig(f"Cannot write into {folder}: {error.strerror}: correct `data`") from error

    async def feedback(self, *, stars: int, text: str, language: str, steps: list[str]) -> None:
        await in_thread(
            _append, self._feedback, {"stars": stars, "text": text, "language": language, "steps": steps}
        )

    async def session(self, *, language: str, minutes: int, steps: list[str], end: str) -> None:
        """Note a session that has ended after full minutes; `end` is the reason."""
        await in_thread(
            _append,
            self._statistics,
            {"language": language, "minutes": minutes, "steps": steps, "end": end},
        )

    def close(self) -> None:
        os.close(self._feedback)
        os.close(self._statistics)


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)


def _append(descriptor: int, record: dict[str, Any]) -> None:
    """Write one line at once, with the day. Blocking."""
    line = encode({"day": datetime.now(UTC).date().isoformat(), **record}) + b"\n"
    try:
        if os.fstat(descriptor).st_size + len(line) <= _MOST:
            os.write(descriptor, line)
            return
        log.warning("feedback or statistics are not stored: the file has %s MiB; move it", _MOST // 2**20)
    except OSError as error:
        log.warning("feedback or statistics are not stored: %s", error.strerror)
