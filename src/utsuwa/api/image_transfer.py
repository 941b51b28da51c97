"""Transfer of images over HTTP: uploads (one file, or two as a form) and exports."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from urllib.parse import parse_qsl

from aiohttp import web

from utsuwa.api import cross_site
from utsuwa.api.http import BINARY, JSON, URL_ENCODED, Request, inline
from utsuwa.core.config_keys import parse_bool
from utsuwa.core.errors import InvalidConfig, InvalidRequest, UnsupportedMedia
from utsuwa.images import forms
from utsuwa.images.forms import ExportedFile
from utsuwa.images.multipart import MultipartForm
from utsuwa.images.new import NewAlias, NewImage
from utsuwa.images.records import check_filename
from utsuwa.images.upload import Upload

_MAX_FIELDS = 1000
_FORM = "multipart/form-data"


def is_upload(request: Request) -> bool:
    """Return whether the body is an image instead of a JSON request. Raises UnsupportedMedia if neither."""
    kind = request.raw.content_type
    if kind in (BINARY, _FORM):
        return True
    if kind in (JSON, URL_ENCODED):
        return False
    raise UnsupportedMedia(
        f"An image cannot be uploaded as {kind[:60]!r}: send {BINARY}, or {_FORM} for an image of two files"
    )


async def receive(request: Request, upload: Upload) -> str:
    """Receive the complete body into `upload`; return the file name in the form, or ''.

    Raises InvalidRequest, TooLarge, OutOfSpace.
    """
    await upload.expect(request.raw.content_length)
    try:
        if request.raw.content_type == _FORM:
            form = MultipartForm(request.raw.headers["Content-Type"], request.raw.content.iter_any())
            return await forms.receive_form(form, upload)
        await upload.receive("metadata", request.raw.content.iter_any())
    except ConnectionError as error:
        raise InvalidRequest("The upload was cut off") from error
    if not upload.size:
        raise InvalidRequest("The upload is empty")
    return ""


def new_image(request: Request) -> NewImage:
    """Return the settings in the headers of an upload. Raises InvalidRequest."""
    profiles = _values(_header(request, "profiles"), "profile")
    return NewImage(
        filename=check_filename(_header(request, "filename")),
        fingerprint=_header(request, "fingerprint"),
        public=_flag(request, "public"),
        properties=dict(_fields(_header(request, "properties"))),
        profiles=profiles or ("default",),
        aliases=[NewAlias(name) for name in _values(_header(request, "aliases"), "alias")],
        trusted=request.caller.root,
    )


def _header(request: Request, name: str) -> str:
    """Return the header `X-LXD-<name>`, or that of Incus' client."""
    headers = request.raw.headers
    return headers.get(f"X-LXD-{name}") or headers.get(f"X-Incus-{name}") or ""


def _flag(request: Request, name: str) -> bool:
    try:
        return parse_bool(_header(request, name))
    except InvalidConfig as error:
        raise InvalidRequest(f"Invalid header X-LXD-{name}: it {error.message}") from error


def _fields(text: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(text, keep_blank_values=True, max_num_fields=_MAX_FIELDS, errors="strict")
    except ValueError as error:
        raise InvalidRequest("A header of the upload is not URL-encoded, or has too many fields") from error


def _values(text: str, key: str) -> list[str]:
    return [value for name, value in _fields(text) if name == key]


async def send(raw: web.BaseRequest, files: Sequence[ExportedFile]) -> web.StreamResponse:
    """Stream an image's files and close them: a single file unchanged, two as a form."""
    try:
        form = forms.Form(files)
        named = inline(files[0].name) if len(files) == 1 else {}
        sharing = cross_site.reply_headers(raw)
        response = web.StreamResponse(headers={**sharing, **named, "Content-Type": form.content_type})
        response.content_length = form.size
        await response.prepare(raw)
        async for chunk in form.chunks():
            await response.write(chunk)
        await response.write_eof()
        return response
    finally:
        for file in files:
            file.file.close()


def pushed_image(request: Request, agreed: NewImage) -> NewImage:
    """Return the settings of an image that another server uploads, as it was agreed on."""
    sent = new_image(request)
    properties = {**agreed.properties, **sent.properties}
    return dataclasses.replace(
        agreed, filename=sent.filename, fingerprint=sent.fingerprint, properties=properties
    )


def secret_of(request: Request) -> str:
    """Return the secret with which another server uploads an image, or ''."""
    return _header(request, "secret")
