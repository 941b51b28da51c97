"""Schedules and time spans."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utsuwa.core.errors import InvalidConfig
from utsuwa.core.schedules import add_span, is_due, parse_schedule, runs_at_start

NOON = datetime(2026, 3, 2, 12, 0, 30, tzinfo=UTC)  # a Monday


@pytest.mark.parametrize(
    ("schedule", "due"),
    [
        ("0 12 * * *", True),
        ("*/15 6-12 * mar mon", True),
        ("1 12 * * *", False),
        ("0 12 * * 2", False),
        ("0 6 * * *, 0 12 * * *", True),
        ("10 2,5-8/2 * * *", False),
        ("@startup", False),
        ("@never", False),
        ("", False),
    ],
)
def test_a_schedule_is_due_in_its_minutes_only(schedule: str, due: bool) -> None:
    assert is_due(schedule, NOON, 7) is due


@pytest.mark.parametrize(
    ("alias", "times"),
    [
        ("@hourly", 24),
        ("@daily", 1),
        ("@midnight", 1),
    ],
)
@settings(max_examples=10)
@given(owner=st.integers(1, 100_000))
def test_an_alias_is_due_once_per_period_at_a_minute_of_the_owner(alias: str, times: int, owner: int) -> None:
    day = datetime(2026, 3, 2, tzinfo=UTC)
    minutes = [day + timedelta(minutes=n) for n in range(24 * 60)]
    due = [minute for minute in minutes if is_due(alias, minute, owner)]
    assert len(due) == times
    assert {moment.minute for moment in due} == {owner % 60}


def test_startup_is_recognized_beside_others() -> None:
    assert runs_at_start("@daily, @startup")
    assert not runs_at_start("@daily")


@pytest.mark.parametrize(
    "value",
    ["every day", "0 6 * *", "99 * * * *", "@daily,@sometimes", "0 6 * * fun", "0 0 30 2 *"],
)
def test_an_invalid_schedule_is_refused(value: str) -> None:
    with pytest.raises(InvalidConfig, match="cron expression"):
        parse_schedule(value)


@pytest.mark.parametrize(
    ("span", "end"),
    [
        ("30S", datetime(2026, 1, 31, 0, 0, 30, tzinfo=UTC)),
        ("1M 1H", datetime(2026, 1, 31, 1, 1, tzinfo=UTC)),
        ("1m", datetime(2026, 2, 28, tzinfo=UTC)),
        ("1w 2d", datetime(2026, 2, 9, tzinfo=UTC)),
        ("2y", datetime(2028, 1, 31, tzinfo=UTC)),
    ],
)
def test_a_span_is_added_by_the_calendar(span: str, end: datetime) -> None:
    assert add_span(span, datetime(2026, 1, 31, tzinfo=UTC)) == end


def test_an_empty_span_has_no_end() -> None:
    assert add_span("", NOON) is None


@pytest.mark.parametrize("value", ["soon", "3", "3x", "-1d", "9999y", "1d,2w"])
def test_an_invalid_span_is_refused(value: str) -> None:
    with pytest.raises(InvalidConfig):
        add_span(value, datetime(2026, 1, 31, tzinfo=UTC))
