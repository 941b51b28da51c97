"""Requests to the daemon, as any client over HTTPS may send them."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from contextlib import AsyncExitStack
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec

from utsuwa.core.errors import HostError, InvalidConfig, NotFound, Unavailable, UtsuwaError
from utsuwa.tryit.places import CERTIFICATE, KEY, SERVER
from utsuwa.tryit.settings import Settings

_MAX_MESSAGE = 4 * 2**20
_SECONDS = 60.0
_START_SECONDS = 60.0
"""Until a command has been started."""
_CLOSE_SECONDS = 10.0


class Execution:
    """A command that has been started: the websockets of its streams by name."""

    def __init__(self, streams: dict[str, aiohttp.ClientWebSocketResponse]) -> None:
        self.streams = streams

    @property
    def terminal(self) -> aiohttp.ClientWebSocketResponse:
        return self.streams["0"]

    async def resize(self, width: int, height: int) -> None:
        """Raises ConnectionError."""
        size = {"width": str(width), "height": str(height)}
        await self.streams["control"].send_json({"command": "window-resize", "args": size})

    async def close(self) -> None:
        """End the command, if it still runs."""
        for stream in self.streams.values():
            # What the command still says, however much, is not waited for.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await stream.close()


class Rest:
    """The daemon. Methods raise NotFound, HostError with the daemon's message, or Unavailable."""

    def __init__(self, settings: Settings, context: ssl.SSLContext) -> None:
        self._project = settings.project
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_SECONDS)
        connector = aiohttp.TCPConnector(ssl=context, limit=0)
        self._session = aiohttp.ClientSession(settings.server, connector=connector, timeout=timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def get(self, path: str, **query: str) -> Any:
        """Return the metadata of an object."""
        return (await self._request("GET", path, None, query))["metadata"]

    async def do(self, method: str, path: str, body: Any = None) -> Any:
        """Change something, and wait until it is done."""
        envelope = await self._request(method, path, body, {})
        if envelope["type"] != "async":
            return envelope["metadata"]
        url = envelope["operation"].partition("?")[0]
        ended = (await self._request("GET", f"{url}/wait", None, {}))["metadata"]
        if ended["status_code"] != HTTPStatus.OK:
            raise HostError(str(ended["err"] or ended["status"]))
        return ended["metadata"]

    async def execute(
        self, name: str, command: list[str], *, width: int = 0, height: int = 0, control: bool = False
    ) -> Execution:
        """Start a command on a terminal in a container, as its root.

        Raises Unavailable also if that takes longer than a minute.
        """
        body = {
            "command": command,
            "wait-for-websocket": True,
            "interactive": True,
            "width": width,
            "height": height,
            "environment": {"TERM": "xterm-256color"},
        }
        names = ("control", "0") if control else ("0",)
        try:
            async with asyncio.timeout(_START_SECONDS):
                started = await self._request("POST", f"/1.0/instances/{name}/exec", body, {})
                return await self._connect(started, names)
        except TimeoutError as error:
            message = f"The daemon does not run the command within {_START_SECONDS:.0f} s"
            raise Unavailable(message) from error

    async def _connect(self, started: dict[str, Any], names: tuple[str, ...]) -> Execution:
        """Open these streams of a command."""
        secrets = started["metadata"]["metadata"]["fds"]
        url = f"{started['operation'].partition('?')[0]}/websocket"
        execution = Execution({})
        try:
            async with AsyncExitStack() as undo:
                undo.push_async_callback(execution.close)
                for stream in names:
                    execution.streams[stream] = await self._session.ws_connect(
                        url,
                        params={"secret": secrets[stream], "project": self._project},
                        max_msg_size=_MAX_MESSAGE,
                        autoclose=True,
                    )
                undo.pop_all()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(f"The daemon does not run the command: {error}") from error
        return execution

    async def _request(self, method: str, path: str, body: Any, query: dict[str, str]) -> dict[str, Any]:
        data = None if body is None else msgspec.json.encode(body)
        try:
            async with self._session.request(
                method,
                path,
                params={"project": self._project, **query},
                data=data,
                headers={"Content-Type": "application/json"} if data is not None else None,
            ) as reply:
                envelope = msgspec.json.decode(await reply.read(), type=dict[str, Any])
        except (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError) as error:
            raise Unavailable(f"The daemon does not answer: {error}") from error
        if envelope.get("type") == "error":
            raise _failure(str(envelope.get("error")), int(envelope.get("error_code") or 0))
        return envelope


def _failure(message: str, status: int) -> UtsuwaError:
    return NotFound(message) if status == HTTPStatus.NOT_FOUND else HostError(message)


def tls_context(folder: Path) -> ssl.SSLContext:
    """Return a context with the site's certificate that accepts the daemon's only. Raises InvalidConfig."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # it is known by itself, whatever the address is
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    try:
        context.load_verify_locations(folder / SERVER)
        context.load_cert_chain(folder / CERTIFICATE, folder / KEY)
    except (OSError, ssl.SSLError) as error:
        raise InvalidConfig(
            f"Cannot use the certificates in {folder}: {error}: run `utsuwad try init` again"
        ) from error
    return context


async def settle(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks, and wait for their end."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
