"""The HTTP API of the site, and its page.

The cookie is the only right of a visitor. Everything that changes something, and the terminal, must come from
the site's own page, which the browser tells by `Origin`.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, Literal, TypeVar

import msgspec
from aiohttp import web

from utsuwa.core import clock
from utsuwa.core.errors import (
    Forbidden,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    TooLarge,
    UnsupportedMedia,
    UtsuwaError,
)
from utsuwa.core.origins import parse_host, parse_origin
from utsuwa.core.threads import in_thread
from utsuwa.httpd import page_files
from utsuwa.httpd.page_replies import HEADERS, page_response
from utsuwa.httpd.websockets import check_websocket
from utsuwa.tryit import terminal, tour
from utsuwa.tryit.addresses import Addresses
from utsuwa.tryit.sessions import COOKIE, Full, NoSession, Session, Sessions
from utsuwa.tryit.settings import Settings
from utsuwa.wire.codec import InvalidBody, check_depth, encode

log = logging.getLogger(__name__)

T = TypeVar("T")

TERMS = "1"
"""The version of the terms that visitors accept."""
_PAGE = "try.html"
_RETRY_SECONDS = 60
_LIMIT = 16 * 1024
"""Bytes of a body."""
_BODY_SECONDS = 20.0
_MAX_MESSAGE = 64 * 1024
_HEARTBEAT = 30.0
_MAX_SIZE = 1000
_ASSET = re.compile(r"/(assets/[A-Za-z0-9._-]+|icon\.svg|licences\.txt)\Z")
_STEP = re.compile(r"/api/session/steps/([a-z]{1,20})/check\Z")


class TooSlow(UtsuwaError):
    """The body of a request does not arrive."""

    key = "too-slow"
    status = 408


class SessionsPost(msgspec.Struct, kw_only=True):
    """`terms` is the version that the visitor has accepted."""

    terms: str
    language: Literal["en", "ja"] = "en"


class FeedbackPost(msgspec.Struct, kw_only=True):
    """What a visitor says of the session."""

    stars: int
    text: str = ""


class Site:
    """Answers all requests."""

    def __init__(self, settings: Settings, sessions: Sessions, addresses: Addresses) -> None:
        self._settings = settings
        self._sessions = sessions
        self._addresses = addresses
        self._secure = settings.origin.startswith("https://")
        self._cookie = "__Host-utsuwa-try" if self._secure else "utsuwa-try"
        self._routes: Mapping[str, Mapping[str, Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]]]
        self._routes = {
            "/": {"GET": self._show_page, "HEAD": self._show_page},
            "/api/site": {"GET": self._show_site},
            "/api/sessions": {"POST": self._begin},
            "/api/session": {"GET": self._show_session, "DELETE": self._end},
            "/api/session/terminal": {"GET": self._open_terminal},
            "/api/session/turn": {"POST": self._ask_turn, "DELETE": self._leave_turn},
            "/api/tour": {"GET": self._show_tour},
            "/api/feedback": {"POST": self._note_feedback},
        }

    async def handle(self, raw: web.BaseRequest) -> web.StreamResponse:
        """Answer a request, whatever happens."""
        try:
            return await self._route(raw)
        except UtsuwaError as error:
            if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR and not isinstance(error, Full):
                log.warning("%s %s: %s", raw.method, raw.rel_url.raw_path[:200], error.message)
            response = _json({"error": error.message, "code": error.key}, error.status)
            if error.status == HTTPStatus.SERVICE_UNAVAILABLE:
                response.headers["Retry-After"] = str(_RETRY_SECONDS)
            return response
        except ConnectionError:
            raise  # the browser has gone
        except Exception:
            log.exception("%s %s failed", raw.method, raw.rel_url.raw_path[:200])
            return _json({"error": "The site has failed", "code": "internal"}, UtsuwaError.status)

    async def _route(self, raw: web.BaseRequest) -> web.StreamResponse:
        path = raw.rel_url.raw_path
        if raw.method not in ("GET", "HEAD"):
            self._check_origin(raw)
        if step := _STEP.match(path):
            if raw.method != "POST":
                raise MethodNotAllowed("Use POST")
            return await self._check_step(raw, step[1])
        if asset := _ASSET.match(path):
            return await self._show_asset(raw, asset[1])
        methods = self._routes.get(path)
        if methods is None:
            raise NotFound("There is no such page")
        handler = methods.get(raw.method)
        if handler is None:
            raise MethodNotAllowed(f"Use {', '.join(methods)}")
        return await handler(raw)

    def _check_origin(self, raw: web.BaseRequest) -> None:
        """Raise Forbidden unless the browser says that the site's own page sends the request."""
        origins = raw.headers.getall("Origin", ())
        sites = raw.headers.getall("Sec-Fetch-Site", ())
        own = len(origins) == 1 and self._is_own(raw, origins[0])
        if not own or any(site != "same-origin" for site in sites):
            raise Forbidden(
                "Requests of pages elsewhere, and of programs, are rejected: open the site itself"
            )

    def _is_own(self, raw: web.BaseRequest, text: str) -> bool:
        origin = parse_origin(text)
        if origin is None:
            return False
        if self._settings.origin:
            return origin == parse_origin(self._settings.origin)
        return (origin.host, origin.port) == parse_host(raw.headers.get("Host", ""), origin.scheme)

    # ---- the page

    async def _show_page(self, raw: web.BaseRequest) -> web.StreamResponse:
        found = await in_thread(page_files.find, _PAGE)
        return page_response(raw, found or page_files.missing())

    async def _show_asset(self, raw: web.BaseRequest, path: str) -> web.StreamResponse:
        found = await in_thread(page_files.find, path)
        if found is None:
            raise NotFound("The page has no such file")
        return page_response(raw, found)

    # ---- sessions

    async def _show_site(self, _raw: web.BaseRequest) -> web.StreamResponse:
        return _json(
            {
                "minutes": self._settings.minutes,
                "minutes_unseen": self._settings.minutes_unseen,
                "sessions": {"now": self._sessions.now, "most": self._settings.sessions},
                "terms": TERMS,
            }
        )

    async def _begin(self, raw: web.BaseRequest) -> web.StreamResponse:
        body = await _read(raw, SessionsPost)
        if body.terms != TERMS:
            raise InvalidRequest(f"Accept the terms in their version {TERMS} first")
        try:
            session, cookie = self._sessions.find_current(self._cookie_of(raw)), ""
        except NoSession:
            session, cookie = await self._sessions.begin(self._addresses.network_of(raw), body.language)
        response = _json(
            {"id": session.id, "expires_at": clock.to_wire(session.expires_at), "step": ""},
            HTTPStatus.CREATED,
        )
        if cookie:
            response.set_cookie(
                self._cookie, cookie, path="/", secure=self._secure, httponly=True, samesite="Strict"
            )
        return response

    async def _show_session(self, raw: web.BaseRequest) -> web.StreamResponse:
        session = self._sessions.find(self._cookie_of(raw))
        return _json(
            {
                "id": session.id,
                "expires_at": clock.to_wire(session.expires_at),
                "state": session.state,
                "done": session.done,
                "container": session.container.name,
            }
        )

    async def _end(self, raw: web.BaseRequest) -> web.StreamResponse:
        session = self._sessions.find(self._cookie_of(raw))
        await self._sessions.end(session, "visitor")
        return _json({})

    async def _open_terminal(self, raw: web.BaseRequest) -> web.StreamResponse:
        self._check_origin(raw)
        session = self._sessions.find(self._cookie_of(raw))
        width, height = _size(raw, "width"), _size(raw, "height")
        viewer = _websocket(raw)
        await viewer.prepare(raw)
        if session.ended is not None:
            await viewer.close(code=terminal.ENDED)
            return viewer
        if width and height:
            await session.terminal.resize(width, height)
        await session.terminal.attach(viewer)
        return viewer

    # ---- the tour

    async def _show_tour(self, _raw: web.BaseRequest) -> web.StreamResponse:
        return _json(
            [{"id": step.id, "commands": step.commands, "in_turns": step.in_turns} for step in tour.STEPS]
        )

    async def _check_step(self, raw: web.BaseRequest, id: str) -> web.StreamResponse:
        session = self._sessions.find_current(self._cookie_of(raw))
        step = tour.BY_ID.get(id)
        if step is None:
            raise NotFound("The tour has no such step")
        verdict = await self._sessions.check(session, step)
        return _json({"done": verdict.done, "hint": verdict.hint, "data": verdict.data})

    async def _ask_turn(self, raw: web.BaseRequest) -> web.StreamResponse:
        session = self._sessions.find_current(self._cookie_of(raw))
        place = self._sessions.ask_turn(session)
        if place is None:
            return _json({"state": "done"})
        if place.has_turn:
            return _json({"state": "turn", "seconds": place.seconds})
        return _json({"state": "waiting", "ahead": place.ahead, "most": self._settings.docker_at_once})

    async def _leave_turn(self, raw: web.BaseRequest) -> web.StreamResponse:
        session = self._sessions.find(self._cookie_of(raw))
        self._sessions.turns.leave(session.id, "left")
        return _json({})

    async def _note_feedback(self, raw: web.BaseRequest) -> web.StreamResponse:
        session: Session = self._sessions.find(self._cookie_of(raw))
        body = await _read(raw, FeedbackPost)
        if not 1 <= body.stars <= 5:
            raise InvalidRequest("stars is a number from 1 to 5")
        if len(body.text) > 2000:
            raise InvalidRequest("text has at most 2000 characters")
        await self._sessions.note_feedback(session, body.stars, body.text)
        return _json({})

    def _cookie_of(self, raw: web.BaseRequest) -> str:
        """Return the cookie, or an empty text if there is none that `Sessions` may have given."""
        text = raw.cookies.get(self._cookie, "") if "Cookie" in raw.headers else ""
        return text if COOKIE.match(text) else ""


def _json(value: Any, status: int = HTTPStatus.OK) -> web.Response:
    headers = {**HEADERS, "Cache-Control": "no-store"}
    return web.Response(
        body=encode(value), status=status, headers=headers, content_type="application/json", charset="utf-8"
    )


async def _read(raw: web.BaseRequest, type: type[T]) -> T:
    """Return the decoded body. Raises UnsupportedMedia, TooLarge, InvalidRequest."""
    if raw.content_type != "application/json":
        raise UnsupportedMedia("The body must be application/json")
    data = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in raw.content.iter_any():
                data += chunk
                if len(data) > _LIMIT:
                    raise TooLarge("The body is too large")
    except TimeoutError:
        raise TooSlow(f"The body has not arrived within {_BODY_SECONDS:.0f} s") from None
    try:
        check_depth(bytes(data))
        return msgspec.json.decode(bytes(data), type=type)
    except (InvalidBody, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The body is not valid: {error}") from error


def _size(raw: web.BaseRequest, name: str) -> int:
    text = raw.rel_url.query.get(name, "")
    return min(int(text), _MAX_SIZE) if text.isascii() and text.isdigit() and len(text) < 6 else 0


def _websocket(raw: web.BaseRequest) -> web.WebSocketResponse:
    """Return a websocket to `prepare`. Raises InvalidRequest if the browser does not ask for one."""
    viewer = web.WebSocketResponse(max_msg_size=_MAX_MESSAGE, compress=False, heartbeat=_HEARTBEAT)
    check_websocket(viewer, raw)
    return viewer
