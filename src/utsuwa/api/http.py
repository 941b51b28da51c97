"""The HTTP interface of handlers: requests, results and routes.

A handler is `async def f(request: Request) -> Result`. It parses the request, makes one manager call and
builds the result; errors are raised, and rendered by `api.application`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

from aiohttp import web
from multidict import MultiMapping

from utsuwa.api.cross_site import from_browser
from utsuwa.api.services import Services
from utsuwa.core.entitlements import OF_SERVER, Entitlement, Entity
from utsuwa.core.errors import (
    InvalidRequest,
    NotSupportedYet,
    PreconditionFailed,
    TooLarge,
    UnsupportedMedia,
)
from utsuwa.core.filters import Filter
from utsuwa.core.filters import parse as parse_filter
from utsuwa.core.names import DEFAULT_PROJECT, check_project_name
from utsuwa.core.refs import InstanceRef
from utsuwa.core.scope import EVERYTHING, Scope
from utsuwa.core.urls import object_url
from utsuwa.operations.operations import Operation
from utsuwa.security.authorization import Access, Caller
from utsuwa.wire.codec import InvalidBody, convert, decode_object, encode_stable
from utsuwa.wire.events import Requestor

T = TypeVar("T")

MAX_BODY = 4 * 2**20
"""Maximum size of a JSON body in bytes; uploads are streams with separate limits."""

JSON = "application/json"
BINARY = "application/octet-stream"
URL_ENCODED = "application/x-www-form-urlencoded"

_TRUE = frozenset(("1", "true", "True", "yes", "on"))


class Request:
    """An authorized request with its path and query parameters."""

    def __init__(
        self,
        raw: web.BaseRequest,
        services: Services,
        route: Route,
        params: Mapping[str, str],
        caller: Caller,
        scope: Scope = EVERYTHING,
    ) -> None:
        self.raw = raw
        self.services = services
        self.route = route
        self.params = params
        self.caller = caller
        self.scope = scope
        self._data: bytes | None = None

    @property
    def query(self) -> MultiMapping[str]:
        return self.raw.query

    @property
    def containers_api(self) -> bool:
        """Whether the request is for `/1.0/containers` instead of `/1.0/instances`."""
        return self.route.containers_api

    @cached_property
    def project(self) -> str:
        """The project of `?project=`, which need not exist."""
        name = self.query.get("project") or DEFAULT_PROJECT
        return name if name == DEFAULT_PROJECT else check_project_name(name)

    @property
    def all_projects(self) -> bool:
        wanted = self.flag("all-projects")
        if wanted and self.query.get("project"):
            raise InvalidRequest("project and all-projects are mutually exclusive")
        return wanted

    @property
    def instance(self) -> InstanceRef:
        """The instance of `{name}` in the path, which need not exist."""
        return InstanceRef(self.project, self.params["name"])

    @property
    def listed_project(self) -> str | None:
        """The project whose objects a list returns; None for those of all projects that the caller sees."""
        return None if self.all_projects else self.project

    def listed_url(self, kind: str, name: str, project: str) -> str:
        """The URL of an image or network in a list: with the project only in lists of all projects.

        As with LXD, whose clients take all that follows the last slash for the name.
        """
        return object_url(kind, name, project=project if self.all_projects else DEFAULT_PROJECT)

    @property
    def object_project(self) -> str | None:
        """The project of the route's objects; None if it is unknown, or for all projects."""
        entity = self.route.concerns
        if entity is Entity.PROJECT and "name" in self.params:
            return self.params["name"]
        if entity in OF_SERVER or entity is Entity.OPERATION:
            return None
        return self.listed_project if self.route.lists_projects else self.project

    @property
    def recursion(self) -> int:
        """0, 1 or 2."""
        text = self.query.get("recursion") or "0"
        if text not in ("0", "1", "2"):
            raise InvalidRequest(f"Invalid recursion {text[:20]!r}: use 0, 1 or 2")
        return int(text)

    @property
    def filter(self) -> Filter | None:
        """The parsed `?filter=` of a list, or None."""
        text = self.query.get("filter")
        return parse_filter(text) if text else None

    def refuse_filter(self) -> None:
        """Raise NotSupportedYet if a list has a filter that LXD would support."""
        if self.query.get("filter"):
            raise NotSupportedYet("Filtering lists by ?filter= is not supported in this version")

    @property
    def requestor(self) -> Requestor:
        """The caller, as shown in events."""
        caller = self.caller
        return Requestor(username=caller.username, protocol=caller.protocol, address=caller.address)

    def flag(self, name: str) -> bool:
        """Return whether the query parameter `name` is true or 1."""
        return self.query.get(name, "") in _TRUE

    def number(self, name: str, default: int) -> int:
        """Return a query parameter that is a whole number."""
        text = self.query.get(name) or str(default)
        try:
            return int(text[:20])
        except ValueError:
            raise InvalidRequest(f"Invalid {name} {text[:20]!r}: use a whole number") from None

    async def data(self) -> bytes:
        """Read the complete body. Raises TooLarge beyond `MAX_BODY`."""
        if self._data is None:
            self._data = await self._read()
        return self._data

    async def json(self) -> dict[str, Any]:
        """Read the body as a JSON object of plain values, including nulls."""
        self._check_type()
        try:
            return decode_object(await self.data())
        except InvalidBody as error:
            raise InvalidRequest(str(error)) from error

    async def body(self, record: type[T]) -> T:
        """Read the body as a record. Raises InvalidRequest."""
        value = await self.json()
        try:
            return convert(value, record)
        except InvalidBody as error:
            raise InvalidRequest(str(error)) from error

    def if_match(self, source: Any) -> None:
        """Compare If-Match, if given, with the ETag of the current object (an `IfMatch`)."""
        wanted = self.raw.headers.get("If-Match")
        if wanted and wanted.strip() != "*" and etag_of(source) not in _etags(wanted):
            raise PreconditionFailed(
                "The object has changed since you read it (its ETag differs): read it again and repeat"
            )

    def _check_type(self) -> None:
        """Reject the content types of forms, which browsers send cross-site without a preflight request.

        HTTP libraries send `BINARY` by default, and `curl -d` sends `URL_ENCODED`.
        """
        if self.raw.headers.get("Content-Type") == JSON:
            return
        kind = self.raw.content_type
        if kind in (JSON, BINARY) or (kind == URL_ENCODED and not from_browser(self.raw)):
            return
        raise UnsupportedMedia(f"The request body is {kind[:60]!r}: send JSON, as the type {JSON}")

    async def _read(self) -> bytes:
        if (self.raw.content_length or 0) > MAX_BODY:
            raise _too_large()
        data = bytearray()
        async for chunk in self.raw.content.iter_any():
            data += chunk
            if len(data) > MAX_BODY:
                raise _too_large()
        return bytes(data)


def _too_large() -> TooLarge:
    return TooLarge(f"The request body is larger than {MAX_BODY // 2**20} MiB")


def inline(name: str) -> dict[str, str]:
    """Return the header with the name of a file; characters that are not printable ASCII become `_`."""
    plain = "".join(char if char.isascii() and char.isprintable() else "_" for char in name)
    return {"Content-Disposition": f"inline;filename={plain}"}


def etag_of(source: Any) -> str:
    """Return the ETag of an object's editable part: equal for equal values."""
    return hashlib.sha256(encode_stable(source)).hexdigest()


def _etags(header: str) -> list[str]:
    return [part.strip().removeprefix("W/").strip('"') for part in header.split(",")]


@dataclass(frozen=True, slots=True)
class Sync:
    """200 with a payload; `etag` is the value from which the ETag is computed, None for no ETag."""

    metadata: Any
    etag: Any = None


@dataclass(frozen=True, slots=True)
class Empty:
    """200 without a payload."""


@dataclass(frozen=True, slots=True)
class Created:
    """201; `location` is the URL of the new (or renamed) object."""

    location: str


@dataclass(frozen=True, slots=True)
class Background:
    """202; the work continues as `operation`."""

    operation: Operation


@dataclass(frozen=True, slots=True)
class Raw:
    """A response without envelope: a file, a stream, a closed websocket."""

    response: web.StreamResponse


_CREATE = Entitlement.CAN_CREATE
_USUAL = {
    "GET": Entitlement.CAN_VIEW,
    "HEAD": Entitlement.CAN_VIEW,
    "PUT": Entitlement.CAN_EDIT,
    "PATCH": Entitlement.CAN_EDIT,
    "POST": Entitlement.CAN_EDIT,
    "DELETE": Entitlement.CAN_DELETE,
}

Result = Sync | Empty | Created | Background | Raw
Handler = Callable[[Request], Awaitable[Result]]


@dataclass(frozen=True)
class Route:
    """One method of one path.

    `path` has its parameters in braces, one per segment: `/1.0/instances/{name}`. `reply` is the type of the
    payload for the API's description, or one of `Empty`, `Created`, `Background`, `Raw`; a union of types if
    it depends on the request. `body` is the record that the handler reads, None for no body or a stream.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    reply: Any = Empty
    body: Any = None
    access: Access = Access.TRUSTED
    description: str = ""
    containers_api: bool = False
    entity: Entity | None = None
    """None for the server itself."""
    entitlement: Entitlement | None = None
    """None for the default of the method."""
    lists_projects: bool = False
    """Whether the handler supports `?all-projects=true`, for all objects that the caller sees."""
    may_continue: bool = False
    """Whether some requests are answered by `Background` instead of `reply`."""

    @property
    def concerns(self) -> Entity:
        """The type of the route's objects."""
        return self.entity or Entity.SERVER

    @property
    def needs(self) -> Entitlement:
        """The entitlement that a caller needs on that object."""
        if self.entitlement is not None:
            return self.entitlement
        collection = not self.path.endswith("}")
        return _CREATE if self.method == "POST" and collection else _USUAL[self.method]

    def for_containers(self) -> Route:
        """The same route below `/1.0/containers`."""
        path = self.path.replace("/1.0/instances", "/1.0/containers", 1)
        return replace(self, path=path, containers_api=True)


def about(entity: Entity, *routes: Route) -> tuple[Route, ...]:
    """Set the entity of routes that do not specify one."""
    return tuple(route if route.entity else replace(route, entity=entity) for route in routes)
