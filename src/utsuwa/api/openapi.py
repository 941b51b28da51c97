"""The API's description (OpenAPI 3.1), generated from the table of routes and its records."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable
from typing import Any

import msgspec

from utsuwa.api.http import Background, Created, Empty, Raw, Route
from utsuwa.api.routing import TAIL
from utsuwa.version import __version__
from utsuwa.wire.envelope import AsyncReply, ErrorReply, SyncReply

_REF = "#/components/schemas/{name}"
Schema = dict[str, Any]


def describe(routes: Iterable[Route]) -> Schema:
    """Return the complete description as plain JSON values."""
    table = list(routes)
    wanted: list[Any] = [AsyncReply, ErrorReply, SyncReply]
    for route in table:
        wanted += reply_types(route.reply)
        if route.body is not None:
            wanted.append(route.body)
    schemas, components = msgspec.json.schema_components(wanted, ref_template=_REF)
    known = dict(zip(map(str, wanted), schemas, strict=True))
    paths: dict[str, Schema] = {}
    for route in table:
        path = route.path.replace(TAIL, "")
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, known)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Utsuwa", "version": __version__, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {"schemas": components},
    }


def reply_types(reply: Any) -> list[Any]:
    """Return the types of the payload; empty if the kind of result is sufficient."""
    if reply in (Empty, Created, Background, Raw):
        return []
    if isinstance(reply, types.UnionType) or typing.get_origin(reply) is typing.Union:
        return list(typing.get_args(reply))
    return [reply]


def _operation(route: Route, known: dict[str, Schema]) -> Schema:
    operation: Schema = {
        "summary": route.summary,
        "x-access": route.access.value,
        "responses": {
            **_success(route.reply, known),
            **(_success(Background, known) if route.may_continue else {}),
            "default": _json("An error", _ref(ErrorReply)),
        },
    }
    if route.description:
        operation["description"] = route.description
    names = [s[1:-1].removesuffix(TAIL) for s in route.path.split("/") if s.startswith("{")]
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if route.body is not None:
        operation["requestBody"] = {"content": {"application/json": {"schema": known[str(route.body)]}}}
    return operation


def _success(reply: Any, known: dict[str, Schema]) -> Schema:
    if reply is Raw:
        return {"200": {"description": "The content itself"}, "101": {"description": "A websocket"}}
    if reply is Background:
        return {"202": _json("The operation continues in the background", _ref(AsyncReply))}
    if reply is Created:
        return {"201": _json("Created; Location contains the URL", _envelope({"type": "null"}))}
    if reply is Empty:
        return {"200": _json("Done", _envelope({"type": "object"}))}
    payloads = [known[str(kind)] for kind in reply_types(reply)]
    return {"200": _json("Success", _envelope(payloads[0] if len(payloads) == 1 else {"anyOf": payloads}))}


def _envelope(payload: Schema) -> Schema:
    return {"allOf": [_ref(SyncReply), {"properties": {"metadata": payload}, "required": ["metadata"]}]}


def _ref(record: type) -> Schema:
    return {"$ref": _REF.format(name=record.__name__)}


def _json(description: str, schema: Schema) -> Schema:
    return {"description": description, "content": {"application/json": {"schema": schema}}}
