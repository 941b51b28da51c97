"""The filter language."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utsuwa.core.errors import InvalidRequest
from utsuwa.core.filters import parse

WEB = {
    "name": "web01",
    "status": "Running",
    "ephemeral": False,
    "size": 12,
    "config": {"image.os": "Debian", "user.note": "two words"},
    "devices": {"eth0": {"nictype": "p2p"}},
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name eq web01", True),
        ("name eq WEB01", True),
        ("name eq web", False),
        ("name eq web.*", True),
        ("name eq ^web", True),
        ("name ne web01", False),
        ("not name eq web01", False),
        ("not name ne web01", True),
        ("config.image.os eq debian", True),
        ("devices.eth0.nictype eq p2p", True),
        ('config.user.note eq "two words"', True),
        ("ephemeral eq false", True),
        ("size eq 12", True),
        ("size eq 1.", False),
        ("missing eq x", False),
        ("missing ne x", True),
        ("name eq x and status eq running", False),
        ("name eq x or status eq running", True),
        ("name eq x or name eq y or name eq web01", True),
        ("status eq running or name eq x and name eq y", False),
        ("name eq [", False),
    ],
)
def test_matches(text: str, expected: bool) -> None:
    assert parse(text).matches(WEB) is expected


@pytest.mark.parametrize(
    "text",
    ["", "   ", "name", "name eq", "name like x", "name eq x also size eq 1", "name eq x and", "x" * 1001],
)
def test_invalid_filters_are_rejected(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse(text)


@pytest.mark.parametrize("text", ["(a+)+$", "(a|a*)*b", r"(.*)\1"])
def test_refuses_expressions_that_take_exponential_time(text: str) -> None:
    with pytest.raises(InvalidRequest, match="nested quantifiers"):
        parse(f"name eq {text}")


@given(st.text(max_size=80))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        parsed = parse(text)
    except InvalidRequest:
        return
    assert parsed.matches({"name": "a" * 60}) in (True, False)
