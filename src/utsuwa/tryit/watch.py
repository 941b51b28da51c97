"""What has happened in a visitor's daemon and cannot be seen afterwards: its lifecycle events."""

from __future__ import annotations

import asyncio
import logging

import aiohttp

from utsuwa.core.errors import UtsuwaError
from utsuwa.tryit.inside import LISTEN
from utsuwa.tryit.rest import Rest, settle
from utsuwa.wire.codec import InvalidBody, decode_json

log = logging.getLogger(__name__)

_PAUSE = 2.0
"""Seconds until it is listened again, after that has failed."""
_MOST_ACTIONS = 500
_MAX_LINE = 64 * 1024
_LEAST_SECONDS = 0.01
_BYTES_A_SECOND = 128 * 1024
"""What is read of a container that floods its events; those of the tour are far fewer."""


class Watch:
    """The actions (`instance-exec`) in one container since its session began."""

    def __init__(self, rest: Rest, container: str) -> None:
        self._rest = rest
        self._container = container
        self._actions: set[str] = set()
        self.deletions = 0
        """Of instances."""
        self._task = asyncio.create_task(self._listen(), name=f"events in {container}")

    def __contains__(self, action: str) -> bool:
        return action in self._actions

    async def close(self) -> None:
        await settle(self._task)

    async def _listen(self) -> None:
        while True:
            try:
                await self._read()
            except UtsuwaError as error:
                log.info("no events of %s: %s", self._container, error.message)
            except Exception:
                log.exception("cannot read the events of %s", self._container)
            await asyncio.sleep(_PAUSE)

    async def _read(self) -> None:
        execution = await self._rest.execute(self._container, LISTEN)
        rest = b""
        try:
            async for message in execution.terminal:
                if message.type != aiohttp.WSMsgType.BINARY:
                    break
                *lines, rest = (rest + message.data).split(b"\n")
                for line in lines:
                    self._note(line)
                rest = rest[-_MAX_LINE:]
                await asyncio.sleep(max(_LEAST_SECONDS, len(message.data) / _BYTES_A_SECOND))
        finally:
            await execution.close()

    def _note(self, line: bytes) -> None:
        try:
            event = decode_json(line)
        except InvalidBody:
            return
        match event:
            case {"metadata": {"action": str(action)}}:
                self.deletions += action == "instance-deleted"
                if len(self._actions) < _MOST_ACTIONS:
                    self._actions.add(action[:100])
            case _:
                pass
