"""The lines of the daemon's log, and how they become events."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utsuwa.core.errors import HostError
from utsuwa.daemon.logging import EventHandler, LineFormatter
from utsuwa.operations.events import EventHub


def record(message: str, level: int = logging.INFO, **extra: object) -> logging.LogRecord:
    made = logging.makeLogRecord(
        {
            "name": "utsuwa.instances",
            "msg": message,
            "levelno": level,
            "levelname": logging.getLevelName(level),
        }
    )
    vars(made).update(extra)
    return made


def test_a_line_has_its_fields_in_order() -> None:
    line = LineFormatter().format(record("it runs", pid=7, name_of="a b"))
    time, _, rest = line.partition(" ")
    assert time.startswith("time=2")
    assert time.endswith("Z")
    assert rest == 'level=info msg="it runs" logger=instances pid=7 name_of="a b"'


def test_a_traceback_stays_on_the_line() -> None:
    try:
        raise ValueError("broken\nbadly")
    except ValueError:
        line = LineFormatter().format(record("oh", logging.ERROR, exc_info=sys.exc_info()))
    assert "\n" not in line
    assert r"ValueError: broken\nbadly" in line


def test_an_expected_failure_has_a_message_and_no_traceback() -> None:
    """Also where it is caught with everything else, and where it was made of another error (lxd#4054)."""
    try:
        try:
            raise OSError("no such bridge")
        except OSError as error:
            raise HostError("the host has no bridge 'br7': make it") from error
    except HostError:
        line = LineFormatter().format(record("not started", logging.ERROR, exc_info=sys.exc_info()))
    assert line.endswith(
        """ msg="not started" logger=instances error="the host has no bridge 'br7': make it\""""
    )


@given(st.text(), st.text())
def test_values_are_escaped_within_their_line_and_quotes(message: str, value: str) -> None:
    line = LineFormatter().format(record("%s", args=(message,), field=value))
    assert line.isprintable()
    head, found, tail = line.rpartition(" field=")
    assert found or "field=" in value
    if found and " field=" not in value:
        assert tail == value or (tail[0] == tail[-1] == '"')
        assert value != "" or tail == '""'


def test_levels_are_the_ones_of_the_api() -> None:
    shown = {
        level: LineFormatter().format(record("x", level)).split()[1]
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL)
    }
    assert list(shown.values()) == [
        "level=debug",
        "level=info",
        "level=warning",
        "level=error",
        "level=error",
    ]


async def test_records_of_any_thread_become_events() -> None:
    hub = EventHub()
    handler = EventHandler(hub, asyncio.get_running_loop())
    handler.emit(record("nobody listens"))
    with hub.subscribe(["logging"]) as listener:
        thread = threading.Thread(target=handler.emit, args=(record("from afar", pid=7),))
        thread.start()
        event = json.loads(await anext(listener))
        thread.join()
    assert event["metadata"] == {"message": "from afar", "level": "info", "context": {"pid": "7"}}


async def test_record_that_cannot_be_rendered_does_not_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = EventHub()
    handler = EventHandler(hub, asyncio.get_running_loop())
    told: list[logging.LogRecord] = []
    monkeypatch.setattr(handler, "handleError", told.append)
    with hub.subscribe():
        handler.emit(record("%d", args=("no number",)))
    assert len(told) == 1
