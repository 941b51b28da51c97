"""The daemon's log: one line of key=value pairs per record, to stderr, a file, and the event hub.

    time=2026-01-31T10:20:30.123Z level=info msg="instance started" logger=instances name=web

Fields are added by `log.info("...", extra={"name": "web"})`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sys
import traceback
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path

from utsuwa.api.audit import audit_log
from utsuwa.core.errors import UtsuwaError
from utsuwa.operations.events import EventHub

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_PLAIN = re.compile(r"[^\s\"=\x00-\x1f\x7f]+\Z")
_LEVELS = {"WARNING": "warning", "CRITICAL": "error"}


def fields_of(record: logging.LogRecord) -> dict[str, str]:
    """Return the fields added by `extra`, as strings."""
    return {key: str(value) for key, value in vars(record).items() if key not in _STANDARD}


def level_of(record: logging.LogRecord) -> str:
    return _LEVELS.get(record.levelname, record.levelname.lower())


def error_of(record: logging.LogRecord) -> str | None:
    """Return the text for `exc_info`: the message of an expected failure, or the traceback of a bug.

    Code that catches all exceptions can log them with `log.exception` without distinguishing them.
    """
    if record.exc_info is None or record.exc_info[1] is None:
        return None
    if isinstance(record.exc_info[1], UtsuwaError):
        return record.exc_info[1].message
    return "".join(traceback.format_exception(*record.exc_info)).rstrip()


class LineFormatter(logging.Formatter):
    """Formats a record as exactly one line, with exceptions in one quoted field."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        pairs = {
            "time": moment.replace("+00:00", "Z"),
            "level": level_of(record),
            "msg": record.getMessage(),
            "logger": record.name.removeprefix("utsuwa."),
            **fields_of(record),
        }
        error = error_of(record)
        if error is not None:
            pairs["error"] = error
        return " ".join(f"{key}={_quoted(value)}" for key, value in pairs.items())


def _quoted(value: str) -> str:
    if _PLAIN.match(value) and value.isprintable():
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else _escape(c) for c in escaped) + '"'


def _escape(character: str) -> str:
    if character == "\n":
        return "\\n"
    return character.encode("unicode_escape").decode()


def set_up(*, level: int, file: Path | None) -> None:
    """Log to stderr and optionally to a file, which may be rotated. Raises OSError for the file.

    The audit log is written at every `level`.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if file is not None:
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600))
        handlers.append(WatchedFileHandler(file, encoding="utf-8"))
    root = logging.getLogger()
    root.setLevel(logging.WARNING)
    logging.getLogger("utsuwa").setLevel(level)
    audit_log.setLevel(min(level, logging.INFO))
    for handler in handlers:
        handler.setFormatter(LineFormatter())
        root.addHandler(handler)


class EventHandler(logging.Handler):
    """Passes records of all threads to the event hub, on its event loop."""

    def __init__(self, events: EventHub, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._events = events
        self._loop = loop

    def emit(self, record: logging.LogRecord) -> None:
        if not self._events.listened_to or self._loop.is_closed():
            return
        try:
            fields = fields_of(record)
            error = error_of(record)
            if error is not None:
                fields["error"] = error
            arguments = (level_of(record), record.getMessage(), fields)
            self._loop.call_soon_threadsafe(self._events.publish_logging, *arguments)
        except RuntimeError:  # the loop was closed meanwhile
            pass
        except Exception:
            self.handleError(record)
