"""A client's websocket, as the work of an operation sees it."""

from __future__ import annotations

from typing import Protocol


class WebSocket(Protocol):
    """A connected websocket. What is sent after the client has gone raises ConnectionError."""

    @property
    def closed(self) -> bool: ...

    @property
    def left_on_purpose(self) -> bool:
        """Whether the client, once it has closed the websocket, said so: its connection was not cut."""

    async def read(self) -> bytes | str | None:
        """The next message; None once the client has closed the websocket or is gone."""

    async def send_bytes(self, data: bytes) -> None: ...

    async def send_str(self, data: str) -> None: ...
