"""The interface of client websockets for operations."""

from __future__ import annotations

from typing import Protocol


class WebSocket(Protocol):
    """A connected websocket. Sending after the client has disconnected raises ConnectionError."""

    @property
    def closed(self) -> bool: ...

    @property
    def left_on_purpose(self) -> bool:
        """Whether the client has closed the websocket properly, instead of losing its connection."""

    async def read(self) -> bytes | str | None:
        """Return the next message; None once the client has closed the websocket or disconnected."""

    async def send_bytes(self, data: bytes) -> None: ...

    async def send_str(self, data: str) -> None: ...


class LastingWebSocket(WebSocket, Protocol):
    """One that can be closed with a code that tells the client why."""

    async def close(self, *, code: int = 1000) -> bool: ...
