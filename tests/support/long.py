"""What continuous integration leaves to `scripts/test --long`: CONTRIBUTING.md describes the split.

A whole test is marked `long`; of a table of cases, or of a number of attempts, a part is taken here.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from typing import Any

import pytest
from _pytest.mark import ParameterSet

LONG = "UTSUWA_LONG" in os.environ


def amount(usual: int, *, long: int) -> int:
    """Return how many of something to take: attempts, examples, requests."""
    return long if LONG else usual


def usually(kept: Collection[Any], values: Iterable[Any]) -> list[ParameterSet]:
    """Return all values as parameters of a test; those that are not in `kept` are marked `long`.

    A tuple is the values of several arguments. Raises AssertionError if one of `kept` does not exist.
    """
    found = list(values)
    assert all(value in found for value in kept), f"not all of {kept} are among {found}"
    return [
        pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=_marks(value in kept))
        for value in found
    ]


def _marks(kept: bool) -> tuple[pytest.MarkDecorator, ...]:
    return () if kept else (pytest.mark.long,)
