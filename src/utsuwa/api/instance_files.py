"""`/1.0/instances/{name}/files`: retrieve, push and delete files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any, cast
from urllib.parse import unquote_to_bytes

from aiohttp import web

from utsuwa.api import cross_site
from utsuwa.api.bodies import UploadBody
from utsuwa.api.http import BINARY, JSON, Empty, Raw, Request, Result, Route, about, inline
from utsuwa.core.entitlements import Entitlement, Entity
from utsuwa.core.errors import InvalidRequest
from utsuwa.instances.files.transfer import Attributes, Pushed, Retrieved, Upload
from utsuwa.wire.envelope import sync_reply

_PATH = "/1.0/instances/{name}/files"
_PREFIXES = ("X-LXD-", "X-Incus-")
_TAR = "application/x-tar"
_MAX_ID = 2**32 - 2
_MAX_MODE = 0o7777


async def _path(request: Request) -> str:
    """Return `?path=`, whose bytes need not be UTF-8."""
    for part in request.raw.rel_url.raw_query_string.split("&"):
        name, _, value = part.partition("=")
        if name == "path" and value:
            return os.fsdecode(unquote_to_bytes(value.replace("+", " ")))
    await request.services.instances.find(request.instance)  # the more important error
    raise InvalidRequest("Missing path argument")


async def get_file(request: Request) -> Result:
    files, path = request.services.files, await _path(request)
    archive = _header(request, "type") == "archive"
    async with files.retrieve(request.instance, path, archive=archive) as found:
        headers = _headers(found.attributes)
        if found.names is not None:
            body = _listing(found.names)
            return Raw(web.Response(body=body, headers=headers, content_type=JSON))
        if found.attributes.type == "archive":
            return Raw(await _stream(request, headers, found, _TAR))
        headers |= inline(PurePosixPath(path).name)
        if found.rest is None:
            return Raw(web.Response(body=found.data, headers=headers, content_type=BINARY))
        return Raw(await _stream(request, headers, found))


async def head_file(request: Request) -> Result:
    found = await request.services.files.attributes(request.instance, await _path(request))
    return Raw(web.Response(headers=_headers(found), content_type=JSON))


async def push_file(request: Request) -> Result:
    path, upload = await _path(request), _upload(request)
    await request.services.files.push(request.instance, path, upload, UploadBody(request.raw))
    return Empty()


async def delete_file(request: Request) -> Result:
    await request.services.files.delete(request.instance, await _path(request))
    return Empty()


async def _stream(
    request: Request, headers: Mapping[str, str], found: Retrieved, content_type: str = BINARY
) -> web.StreamResponse:
    sharing = cross_site.reply_headers(request.raw)
    response = web.StreamResponse(headers={**sharing, **headers, "Content-Type": content_type})
    if found.attributes.size:  # files of the kernel have no size
        response.content_length = found.attributes.size
    await response.prepare(request.raw)
    await response.write(found.data)
    assert found.rest is not None
    async for chunk in found.rest:
        await response.write(chunk)
    await response.write_eof()
    return response


def _headers(found: Attributes) -> dict[str, str]:
    """The attributes by the names that the clients of LXD and of Incus read."""
    modified = datetime.fromtimestamp(found.modified_ns // 10**9, UTC)
    values = {
        "uid": str(found.uid),
        "gid": str(found.gid),
        "mode": f"{found.mode:04o}",
        "type": found.type,
        "modified": f"{modified:%Y-%m-%d %H:%M:%S} +0000 UTC",
    }
    return {f"{prefix}{name}": value for prefix in _PREFIXES for name, value in values.items()}


def _listing(names: list[str]) -> bytes:
    """The reply for a directory. Bytes that are not UTF-8 are lone surrogates in escaped form."""
    if all(name.isprintable() for name in names):
        return sync_reply(names)
    envelope = cast(dict[str, Any], json.loads(sync_reply([])))
    return json.dumps({**envelope, "metadata": names}).encode()


def _upload(request: Request) -> Upload:
    """Return what the headers say. Raises InvalidRequest."""
    kind = _header(request, "type") or "file"
    if kind not in ("file", "directory", "symlink", "archive"):
        raise InvalidRequest(f"Bad file type: {kind[:40]}: use file, directory, symlink or archive")
    write = _header(request, "write") or "overwrite"
    if write not in ("overwrite", "append"):
        raise InvalidRequest(f"Bad file write mode: {write[:40]}: use overwrite or append")
    mode = _header(request, "mode")
    return Upload(
        type=cast(Pushed, kind),
        uid=_number(request, "uid", _MAX_ID),
        gid=_number(request, "gid", _MAX_ID),
        mode=_number(request, "mode", _MAX_MODE) if mode else None,
        append=write == "append",
    )


def _number(request: Request, name: str, most: int) -> int:
    """Return the value of a header, 0 if it is missing; a leading 0 means octal."""
    text = _header(request, name) or "0"
    try:
        octal = len(text) > 1 and text[0] == "0" and text[1].isdigit()
        value = int(text[:20], 8 if octal else 0)
    except ValueError:
        value = -1
    if not 0 <= value <= most:
        limit = f"{most:#o}" if name == "mode" else str(most)
        raise InvalidRequest(f"Invalid {name} {text[:20]!r}: use a number from 0 to {limit}")
    return value


def _header(request: Request, name: str) -> str:
    headers = request.raw.headers
    return next((headers[prefix + name] for prefix in _PREFIXES if headers.get(prefix + name)), "")


ROUTES: tuple[Route, ...] = about(
    Entity.INSTANCE,
    Route(
        "GET",
        _PATH,
        get_file,
        "Retrieve a file",
        Raw,
        entitlement=Entitlement.CAN_ACCESS_FILES,
        description="The content of ?path=: a file, the target of a symlink, or the names in a directory as "
        "JSON. The headers X-LXD-type, -uid, -gid, -mode and -modified describe it. If the request has "
        "X-LXD-type: archive, a directory is a tar archive of all that is in it.",
    ),
    Route(
        "HEAD",
        _PATH,
        head_file,
        "Describe a file",
        Raw,
        entitlement=Entitlement.CAN_ACCESS_FILES,
    ),
    Route(
        "POST",
        _PATH,
        push_file,
        "Push a file",
        entitlement=Entitlement.CAN_ACCESS_FILES,
        description="The body is the content, or a symlink's target. Headers: X-LXD-type (file, directory, "
        "symlink), X-LXD-uid, X-LXD-gid, X-LXD-mode for new files, X-LXD-write (overwrite, append). "
        "With the type archive, the body is a tar archive, which is unpacked below the directory.",
    ),
    Route("DELETE", _PATH, delete_file, "Delete a file", entitlement=Entitlement.CAN_ACCESS_FILES),
)
