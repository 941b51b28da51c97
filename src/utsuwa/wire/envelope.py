"""The three response envelopes of the API: sync, async and error."""

from __future__ import annotations

from typing import Any

import msgspec

from utsuwa.wire.codec import encode
from utsuwa.wire.operations import Operation

_SYNC = (
    b'{"type":"sync","status":"Success","status_code":200,"operation":"",'
    b'"error_code":0,"error":"","metadata":'
)


class SyncReply(msgspec.Struct, kw_only=True):
    """The response of a completed request; `metadata` is the payload."""

    type: str = "sync"
    status: str = "Success"
    status_code: int = 200
    operation: str = ""
    error_code: int = 0
    error: str = ""
    metadata: Any = None


class AsyncReply(msgspec.Struct, kw_only=True):
    """The response of a request that continues in the background; `operation` is its URL."""

    type: str = "async"
    status: str = "Operation created"
    status_code: int = 100
    operation: str
    error_code: int = 0
    error: str = ""
    metadata: Operation


class ErrorReply(msgspec.Struct, kw_only=True):
    """The response of a failed request; `error_key` is the stable key of the error's class."""

    type: str = "error"
    status: str = ""
    status_code: int = 0
    operation: str = ""
    error_code: int
    error: str
    error_key: str
    metadata: None = None


def sync_reply(metadata: Any) -> bytes:
    """Return the JSON of a SyncReply, without encoding its constant part for each request."""
    return b"%b%b}\n" % (_SYNC, encode(metadata))


def async_reply(url: str, operation: Operation) -> bytes:
    return encode(AsyncReply(operation=url, metadata=operation)) + b"\n"


def error_reply(status: int, message: str, key: str) -> bytes:
    return encode(ErrorReply(error_code=status, error=message, error_key=key)) + b"\n"
