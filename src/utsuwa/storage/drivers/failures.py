"""Host failures as the contract's errors: a full disk is told apart from everything else."""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from utsuwa.core.errors import HostError, OutOfSpace, ProcessFailed

P = ParamSpec("P")
R = TypeVar("R")

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_TEXTS = ("No space left on device", "Disk quota exceeded")


def translated(method: Callable[P, R]) -> Callable[P, R]:
    """A driver's method whose OSError and ProcessFailed become HostError or OutOfSpace."""

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except OSError as error:
            if error.errno in _FULL:
                raise out_of_space() from error
            raise HostError(f"Storage: {error.strerror or error} ({error.filename or 'no path'})") from error
        except ProcessFailed as error:
            if any(text in error.stderr for text in _FULL_TEXTS):
                raise out_of_space() from error
            raise

    return call


def out_of_space() -> OutOfSpace:
    return OutOfSpace("No space left on the storage pool: free some space or use another pool")
