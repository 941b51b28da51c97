"""The audit log: which requests it has, and what it says about their callers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

from utsuwa.api import audit
from utsuwa.daemon import logging as daemon_log
from utsuwa.operations.events import EventHub, act_as
from utsuwa.security.authorization import Caller, tls_caller, unix_caller
from utsuwa.wire.events import Requestor

ROOT = unix_caller(0, "root")
LAPTOP = Caller(
    trusted=True,
    protocol="tls",
    username="ab" * 32,
    fingerprint="ab" * 32,
    address="10.0.0.1:5",
    label="laptop",
)
STRANGER = tls_caller(fingerprint="cd" * 32, address="10.0.0.2:5", trusted=False)


@pytest.fixture(autouse=True)
def level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "utsuwa")


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [{"msg": r.getMessage(), **daemon_log.fields_of(r)} for r in caplog.records]


def handle(caller: Caller | None, method: str, url: str, status: int) -> None:
    raw = make_mocked_request(method, url)
    if caller is not None:
        audit.note(raw, caller)
    audit.record(raw, status)


def test_a_change_says_who_and_from_where(caplog: pytest.LogCaptureFixture) -> None:
    handle(ROOT, "POST", "/1.0/instances?project=web&secret=hidden", 202)
    handle(LAPTOP, "DELETE", "/1.0/instances/a%20b", 403)
    assert lines(caplog) == [
        {
            "msg": "change",
            "method": "POST",
            "url": "/1.0/instances",
            "project": "web",
            "status": "202",
            "user": "root",
            "protocol": "unix",
            "address": "@",
        },
        {
            "msg": "change failed",
            "method": "DELETE",
            "url": "/1.0/instances/a%20b",
            "status": "403",
            "user": "ab" * 32,
            "protocol": "tls",
            "address": "10.0.0.1:5",
            "certificate": "laptop",
        },
    ]


def test_what_is_no_change_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    for method in ("GET", "HEAD", "OPTIONS"):
        handle(ROOT, method, "/1.0/instances/c1/files", 200)
    handle(None, "POST", "/1.0/instances", 400)
    assert lines(caplog) == []


def test_strangers_are_noted_when_they_come_in_and_cannot_fill_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for status in (400, 403, audit.CUT_OFF):
        handle(STRANGER, "POST", "/1.0/certificates", status)
    assert lines(caplog) == []
    handle(STRANGER, "POST", "/1.0/certificates", 201)
    (line,) = lines(caplog)
    assert (line["msg"], line["fingerprint"], line["address"]) == ("change", "cd" * 32, "10.0.0.2:5")


def test_a_connection_that_changes_files_is_a_change(caplog: pytest.LogCaptureFixture) -> None:
    handle(ROOT, "GET", "/1.0/instances/c1/sftp", 101)
    handle(ROOT, "PUT", "/1.0/instances/c1", audit.CUT_OFF)
    assert [(line["msg"], line["url"]) for line in lines(caplog)] == [
        ("change", "/1.0/instances/c1/sftp"),
        ("change failed", "/1.0/instances/c1"),
    ]


def test_every_request_is_in_the_log_for_debugging(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "utsuwa")
    handle(STRANGER, "GET", "/1.0?x=secret", 200)
    assert lines(caplog) == [
        {
            "msg": "request",
            "method": "GET",
            "url": "/1.0",
            "address": "10.0.0.2:5",
            "fingerprint": "cd" * 32,
        }
    ]


def test_effects_are_logged_with_their_requestor(caplog: pytest.LogCaptureFixture) -> None:
    hub = EventHub()
    actor = act_as(Requestor(username="root", protocol="unix", address="@"))
    hub.publish_lifecycle("instance-created", "/1.0/instances/c1", "default")
    actor.active = False
    hub.publish_lifecycle("instance-shutdown", "/1.0/instances/c1", "default")
    assert lines(caplog) == [
        {"msg": "instance-created", "source": "/1.0/instances/c1", "user": "root", "address": "@"},
        {"msg": "instance-shutdown", "source": "/1.0/instances/c1"},
    ]


@pytest.fixture
def restored() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("utsuwa")
    levels, handlers = (root.level, ours.level, audit.audit_log.level), list(root.handlers)
    yield
    for handler in set(root.handlers) - set(handlers):
        root.removeHandler(handler)
        handler.close()
    for logger, level in zip((root, ours, audit.audit_log), levels, strict=True):
        logger.setLevel(level)


@pytest.mark.usefixtures("restored")
def test_changes_are_logged_at_every_level(tmp_path: Path) -> None:
    daemon_log.set_up(level=logging.WARNING, file=tmp_path / "log")
    handle(ROOT, "DELETE", "/1.0/instances/c1", 202)
    EventHub().publish_lifecycle("instance-deleted", "/1.0/instances/c1")
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert (
        "level=info msg=change logger=audit method=DELETE url=/1.0/instances/c1 status=202 user=root" in line
    )
