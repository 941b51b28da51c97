"""Warnings: one row for each cause, resolved and pruned; the queue that stores them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from utsuwa.core.errors import Forbidden, InvalidRequest, NotFound, PreconditionFailed, Unavailable
from utsuwa.core.warning_types import (
    BY_CODE,
    NO_APPARMOR,
    NO_ID_RANGES,
    NO_LXCFS,
)
from utsuwa.db import networks, profiles, warnings
from utsuwa.db.database import Database
from utsuwa.db.networks import NetworkRow
from utsuwa.db.transaction import Transaction
from utsuwa.db.warnings import HOST, Subject
from utsuwa.operations.events import LIFECYCLE, EventHub
from utsuwa.operations.warnings import Warnings
from utsuwa.wire.codec import decode_object
from utsuwa.wire.edits import any_state, replace
from utsuwa.wire.warnings import TestWarning, WarningPut

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
KIND = NO_LXCFS


def test_the_codes_are_those_of_lxd_and_further_ones() -> None:
    assert set(BY_CODE) >= set(range(25))
    assert all(code < 25 or code >= 1000 for code in BY_CODE)
    assert len({kind.text for kind in BY_CODE.values()}) == len(BY_CODE)
    assert {kind.severity for kind in BY_CODE.values()} == {"low", "moderate", "high"}


# ---- rows


def test_a_warning_that_occurs_again_is_counted(tx: Transaction) -> None:
    warnings.record(tx, KIND, HOST, "first", NOON)
    warnings.record(tx, KIND, HOST, "second", NOON + HOUR)
    warnings.record(tx, KIND, Subject(project="default"), "in a project", NOON)
    warnings.record(tx, KIND, HOST, "of no member", NOON, here=False)
    first, *others = warnings.get_all(tx)
    assert (first.count, first.message, first.status) == (2, "second", "new")
    assert (first.first_seen, first.last_seen) == (NOON, NOON + HOUR)
    assert [(row.message, row.here, row.subject.project) for row in others] == [
        ("in a project", True, "default"),
        ("of no member", False, ""),
    ]
    assert [row.message for row in warnings.get_all(tx, "default")] == ["in a project"]


def test_a_resolved_warning_is_new_when_it_occurs_again(tx: Transaction) -> None:
    warnings.record(tx, KIND, HOST, "m", NOON)
    (row,) = warnings.get_all(tx)
    warnings.set_status(tx, row.uuid, "acknowledged", NOON)
    warnings.record(tx, KIND, HOST, "m", NOON)
    assert warnings.get(tx, row.uuid).status == "acknowledged"
    warnings.resolve(tx, KIND, HOST, NOON)
    assert warnings.get(tx, row.uuid).status == "resolved"
    warnings.record(tx, KIND, HOST, "m", NOON)
    assert warnings.get(tx, row.uuid).status == "new"
    warnings.resolve(tx, NO_APPARMOR, HOST, NOON)
    assert warnings.get(tx, row.uuid).status == "new"


def test_the_warnings_of_a_deleted_entity_are_gone(tx: Transaction) -> None:
    network = networks.insert(tx, NetworkRow(0, "default", "br0", "", {}, type="bridge"))
    subject = Subject("network", network, "default")
    warnings.record(tx, KIND, subject, "m", NOON)
    (row,) = warnings.get_all(tx)
    assert (row.entity_url, row.subject) == ("/1.0/networks/br0", subject)
    networks.delete(tx, network)
    assert warnings.get_all(tx) == []
    with pytest.raises(NotFound):
        warnings.get(tx, row.uuid)
    warnings.prune(tx, NOON)
    with pytest.raises(NotFound):
        warnings.delete(tx, row.uuid)


def test_old_resolved_warnings_are_pruned(tx: Transaction) -> None:
    for number, kind in enumerate((KIND, NO_APPARMOR, NO_ID_RANGES)):
        warnings.record(tx, kind, HOST, str(kind.code), NOON)
        if number:
            warnings.resolve(tx, kind, HOST, NOON + number * HOUR)
    warnings.prune(tx, NOON + 2 * HOUR)
    assert [row.message for row in warnings.get_all(tx)] == ["1001", "1002"]


def test_an_entity_must_exist(tx: Transaction) -> None:
    profile = profiles.get(tx, "default", "default")
    found = warnings.subject_of(tx, 2, profile.id, "default")
    assert found == Subject("profile", profile.id, "default")
    assert warnings.subject_of(tx, None, None, "") == HOST
    wrong: list[tuple[int | None, int | None]] = [(2, 999), (2, None), (None, 1), (77, 1)]
    for kind, number in wrong:
        with pytest.raises(InvalidRequest):
            warnings.subject_of(tx, kind, number, "")
    with pytest.raises(NotFound):
        warnings.subject_of(tx, None, None, "nope")


# ---- the queue


@pytest.fixture
async def kept(database: Database) -> AsyncIterator[Warnings]:
    made = Warnings(database, EventHub())
    await made.start()
    yield made
    await made.stop()


async def shown(kept: Warnings) -> list[tuple[str, str, int]]:
    return [(w.last_message, w.status, w.count) for w in await kept.list(None)]


async def test_warnings_are_stored_in_order(kept: Warnings, caplog: pytest.LogCaptureFixture) -> None:
    """A message that is repeated is logged once."""
    kept.report(KIND, "one")
    kept.report(KIND, "one")
    kept.judge(NO_APPARMOR, "two")
    kept.judge(NO_APPARMOR, "")
    kept.resolve(NO_ID_RANGES)
    assert await shown(kept) == [("one", "new", 2), ("two", "resolved", 1)]
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == ["one", "two"]


async def test_warnings_of_an_earlier_run_are_resolved_unless_raised_again(database: Database) -> None:
    first = Warnings(database, EventHub())
    await first.start()
    first.report(KIND, "stays")
    first.report(NO_APPARMOR, "goes")
    await first.stop()
    second = Warnings(database, EventHub())
    await second.start()
    second.report(KIND, "stays")
    second.settle()
    assert await shown(second) == [("stays", "new", 2), ("goes", "resolved", 1)]
    await second.stop()


async def test_warnings_wait_for_the_database(
    kept: Warnings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("utsuwa.operations.warnings._RETRY_SECONDS", 0.01)
    store, failed = database.write, asyncio.Event()

    async def fail(*_: Any) -> None:
        failed.set()
        raise Unavailable("away")

    monkeypatch.setattr(database, "write", fail)
    kept.report(KIND, "late")
    kept.report(NO_APPARMOR, "of no project", Subject(project="nope"))
    await failed.wait()
    monkeypatch.setattr(database, "write", store)
    assert await shown(kept) == [("late", "new", 1)]


async def test_a_status_is_changed_and_events_are_published(database: Database) -> None:
    events = EventHub()
    kept = Warnings(database, events)
    await kept.start()
    await kept.make(TestWarning(message="m", project="default"))
    (warning,) = await kept.list("default")
    with events.subscribe([LIFECYCLE]) as heard:
        await kept.edit(warning.uuid, replace(WarningPut(status="acknowledged")), any_state)
        await kept.edit(warning.uuid, replace(WarningPut(status="new")), any_state)
        with pytest.raises(Forbidden):
            await kept.edit(warning.uuid, replace(WarningPut(status="resolved")), any_state)
        for status in ("bogus", ""):
            with pytest.raises(InvalidRequest):
                await kept.edit(warning.uuid, replace(WarningPut(status=status)), any_state)

        def changed(_: object) -> None:
            raise PreconditionFailed("changed")

        with pytest.raises(PreconditionFailed):
            await kept.edit(warning.uuid, replace(WarningPut(status="acknowledged")), changed)
        await kept.delete(warning.uuid)
        found = [decode_object(await anext(heard)) for _ in range(3)]
    assert [event["metadata"]["action"] for event in found] == [
        "warning-acknowledged",
        "warning-reset",
        "warning-deleted",
    ]
    assert {event["metadata"]["source"] for event in found} == {f"/1.0/warnings/{warning.uuid}"}
    for missing in (kept.get(warning.uuid), kept.delete(warning.uuid)):
        with pytest.raises(NotFound):
            await missing
    with pytest.raises(InvalidRequest):
        await kept.make(TestWarning(type_code=999))
    await kept.stop()
