"""Errors keep their class and their status when a caller says what they concern."""

from __future__ import annotations

from utsuwa.core.errors import InvalidConfig, ProcessFailed


def test_concerning_is_put_before_the_message() -> None:
    error = InvalidConfig("it is wrong").concerning("Instance 'c1'")
    assert (str(error), error.message) == ("Instance 'c1': it is wrong",) * 2
    failed = ProcessFailed(["false"], 1, "no").concerning("Instance 'c1'")
    assert (str(failed), failed.code, failed.argv) == ("Instance 'c1': false: no", 1, ["false"])
