"""Rates in bits a second."""

from __future__ import annotations

import pytest

from utsuwa.core.errors import InvalidConfig
from utsuwa.core.units import parse_bits


@pytest.mark.parametrize(
    ("text", "bits"),
    [("100", 100), ("10bit", 10), ("1kbit", 1000), ("1Kbit", 1000), ("10Mbit", 10**7), ("1Gibit", 2**30)],
)
def test_bits(text: str, bits: int) -> None:
    assert parse_bits(text) == bits


@pytest.mark.parametrize("text", ["", "0", "7", "10MB", "fast", "-1Mbit", "1.5Mbit", "99999999Ebit"])
def test_no_rate(text: str) -> None:
    with pytest.raises(InvalidConfig):
        parse_bits(text)
