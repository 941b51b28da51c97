"""What can go wrong between the client and a server; `str(error)` is the sentence for the user."""

from __future__ import annotations

from utsuwa.core.errors import UtsuwaError


class ApiError(UtsuwaError):
    """The server's own answer. `code` is its HTTP status, 0 for a failed operation without one."""

    key = "api"

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Unreachable(UtsuwaError):
    """No server answers at the address."""

    key = "unreachable"


class BadAnswer(UtsuwaError):
    """What came back is no answer of the REST API."""

    key = "bad-answer"
