"""Errors between the client and a server; `str(error)` is the message for the user."""

from __future__ import annotations

from utsuwa.core.errors import UtsuwaError


class ApiError(UtsuwaError):
    """An error returned by the server. `code` is the HTTP status, 0 for a failed operation without one."""

    key = "api"

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Unreachable(UtsuwaError):
    """No server responds at the address."""

    key = "unreachable"


class BadAnswer(UtsuwaError):
    """The response is not valid for the REST API."""

    key = "bad-answer"
