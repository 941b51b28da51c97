"""Request processing of the guest API: routing, limits, and rendering of errors as text."""

from __future__ import annotations

import asyncio
import logging

from aiohttp import web

from utsuwa.api.guest.allowance import Allowance
from utsuwa.api.guest.http import GuestRequest, GuestRoute, failure
from utsuwa.api.guest.routes import ROUTES
from utsuwa.api.routing import Router
from utsuwa.core.errors import UtsuwaError
from utsuwa.core.refs import InstanceRef
from utsuwa.instances.guest.manager import GuestManager

log = logging.getLogger(__name__)

_ROUTER: Router[GuestRoute] = Router(ROUTES)


class GuestApplication:
    """The guest API for one instance."""

    def __init__(self, guest: GuestManager, instance: InstanceRef, allowance: Allowance) -> None:
        self._guest = guest
        self._instance = instance
        self._allowance = allowance

    async def handle(self, raw: web.BaseRequest, gone: asyncio.Event) -> web.StreamResponse:
        """Return the reply, after the instance has taken it. Raises TimeoutError if that takes too long."""
        try:
            route, params = _ROUTER.find(raw.method, raw.rel_url.raw_path)
            request = GuestRequest(raw, self._guest, self._instance, params, gone)
            if route.lasting:
                async with self._allowance.turn():
                    pass
                with self._allowance.lasting():
                    return await self._answer(route, request)
            async with self._allowance.turn(), asyncio.timeout(self._allowance.limits.answer):
                return await _sent(await self._answer(route, request), raw)
        except UtsuwaError as error:
            return failure(error.status, error.message)

    async def _answer(self, route: GuestRoute, request: GuestRequest) -> web.StreamResponse:
        try:
            return await route.handler(request)
        except UtsuwaError as error:
            return _failed(request.raw, error)
        except (ConnectionError, TimeoutError):
            raise
        except web.RequestPayloadError:
            return failure(400, "bad request")
        except Exception:
            log.exception("request of instance %r failed: %s", self._instance.name, route.path)
            return failure(500, "internal server error")


def _failed(raw: web.BaseRequest, error: UtsuwaError) -> web.StreamResponse:
    if raw.writer.output_size > 0:  # in the middle of a stream
        raise ConnectionAbortedError(error.message)
    return failure(error.status, error.message)


async def _sent(response: web.StreamResponse, raw: web.BaseRequest) -> web.StreamResponse:
    """Send a complete reply now, instead of when the handler has returned, within the limits."""
    await response.prepare(raw)
    await response.write_eof()
    return response
