"""Instance types."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utsuwa.core.errors import InvalidConfig
from utsuwa.core.instance_keys import INSTANCE_KEYS
from utsuwa.core.instance_types import limits_of_type


@pytest.mark.parametrize(
    ("name", "limits"),
    [
        ("", {}),
        ("c2-m4", {"limits.cpu": "2", "limits.memory": "4096MB"}),
        ("m0.2", {"limits.memory": "204MB"}),
        ("m0.001", {"limits.memory": "1MB"}),
        ("c1", {"limits.cpu": "1"}),
        ("c0.5-m1", {"limits.cpu": "1", "limits.cpu.allowance": "50%", "limits.memory": "1024MB"}),
        ("m2-c1.5", {"limits.cpu": "2", "limits.cpu.allowance": "75%", "limits.memory": "2048MB"}),
    ],
)
def test_instance_type_sets_limits(name: str, limits: dict[str, str]) -> None:
    assert limits_of_type(name) == limits


@given(st.decimals("0.001", "8192", places=3), st.decimals("0.001", "9999", places=3))
def test_the_limits_of_every_type_are_valid(cpu: object, memory: object) -> None:
    INSTANCE_KEYS.check(limits_of_type(f"c{cpu}-m{memory}"))


@pytest.mark.parametrize(
    "name", ["c0-m1", "c", "m-1", "c1-c2", "t2.micro", "aws:t2.micro", "c1_m1", "c1e3", "-"]
)
def test_an_unknown_type_is_refused(name: str) -> None:
    with pytest.raises(InvalidConfig, match="Unknown instance type"):
        limits_of_type(name)
