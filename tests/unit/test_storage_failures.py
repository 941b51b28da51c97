"""Host failures of drivers as errors of the contract."""

from __future__ import annotations

import errno

import pytest

from utsuwa.core.errors import HostError, InvalidImage, OutOfSpace, ProcessFailed
from utsuwa.storage.drivers.failures import translated


def failing(error: Exception) -> None:
    @translated
    def method() -> None:
        raise error

    method()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_apart(number: int) -> None:
    with pytest.raises(OutOfSpace, match="free some space"):
        failing(OSError(number, "x"))


@pytest.mark.parametrize("text", ["cp: writing: No space left on device", "Disk quota exceeded"])
def test_a_full_disk_in_a_program(text: str) -> None:
    with pytest.raises(OutOfSpace):
        failing(ProcessFailed(["cp"], 1, text))


def test_other_failures() -> None:
    with pytest.raises(HostError, match="Permission denied.*/pool/x"):
        failing(PermissionError(errno.EACCES, "Permission denied", "/pool/x"))
    with pytest.raises(ProcessFailed):
        failing(ProcessFailed(["cp"], 1, "cannot stat"))
    with pytest.raises(InvalidImage):
        failing(InvalidImage("broken"))
