"""Names of snapshots by a pattern."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utsuwa.core.errors import InvalidConfig, InvalidName
from utsuwa.core.snapshot_names import DEFAULT_PATTERN, check_pattern, next_name

CREATED = datetime(2026, 3, 2, 9, 5, 7, tzinfo=UTC)


@pytest.mark.parametrize(
    ("pattern", "taken", "name"),
    [
        ("snap%d", [], "snap0"),
        ("snap%d", ["snap0", "snap7", "snapx", "asnap9", "snap10x"], "snap8"),
        ("%d.daily", ["3.daily"], "4.daily"),
        ("fixed", [], "fixed"),
        ("fixed", ["fixed"], "fixed-0"),
        ("fixed", ["fixed", "fixed-0"], "fixed-1"),
        ("{{ creation_date }}", [], "2026-03-02_09-05-07"),
        ("{{creation_date|date:'2006-01-02_15-04-05'}}", [], "2026-03-02_09-05-07"),
        ('at-{{ creation_date|date:"Jan02-06_0304PM" }}-%d', [], "at-Mar02-26_0905AM-0"),
        ("{{ creation_date|date:'2006' }}", ["2026"], "2026-0"),
    ],
)
def test_a_pattern_results_in_the_next_free_name(pattern: str, taken: list[str], name: str) -> None:
    check_pattern(pattern)
    assert next_name(pattern, taken, CREATED) == name


@given(st.lists(st.integers(0, 10**20)))
def test_the_name_is_free(numbers: list[int]) -> None:
    taken = {f"snap{number}" for number in numbers}
    assert next_name(DEFAULT_PATTERN, taken, CREATED) not in taken


@pytest.mark.parametrize(
    "pattern",
    ["a/b", "two words", "..", "x" * 65, "{{ name }}", "{% if 1 %}", "{{ creation_date|date:'a b' }}"],
)
def test_an_invalid_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidConfig):
        check_pattern(pattern)


def test_a_name_that_grows_too_long_is_refused() -> None:
    pattern = "x" * 63 + "%d"
    assert next_name(pattern, [], CREATED)
    with pytest.raises(InvalidName, match="longer than 64"):
        next_name(pattern, ["x" * 63 + "9"], CREATED)
