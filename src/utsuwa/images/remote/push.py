"""Pushing an image to another server, which has agreed on that with a client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack

import msgspec
from aiohttp import ClientResponse, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector
from yarl import URL

from utsuwa.core.errors import InvalidRequest, Unavailable
from utsuwa.core.proxies import Proxies
from utsuwa.images.forms import ExportedFile, Form
from utsuwa.images.remote.records import KINDS, check_url
from utsuwa.images.remote.web import CONNECT_SECONDS, proxy_for, shown, translated
from utsuwa.operations.operations import Operation
from utsuwa.security.remote_tls import client_context
from utsuwa.version import __version__
from utsuwa.wire.images import ImageExportPost

_MAX_REPLY = 4 * 2**20
_STAGE = ("image_push", "Pushing image")


class _Record(msgspec.Struct):
    id: str = ""
    status_code: int = 0
    err: str = ""
    metadata: dict[str, object] | None = None


class _Envelope(msgspec.Struct):
    metadata: _Record | None = None
    error: str = ""


async def push(
    fingerprint: str,
    filename: str,
    files: Sequence[ExportedFile],
    request: ImageExportPost,
    proxies: Proxies,
    operation: Operation,
) -> None:
    """Send an image's files, which are closed, to the server of the request, and wait for its verdict.

    Raises InvalidRequest (target, certificate, what the other server refuses) and Unavailable.
    """
    with ExitStack() as closing:
        for exported in files:
            closing.callback(exported.file.close)
        url = check_target(request.target)
        context = await asyncio.to_thread(client_context, request.certificate, None)
        form = Form(files)
        headers = {"Content-Type": form.content_type, "Content-Length": str(form.size)}
        said = {"fingerprint": fingerprint, "secret": request.secret}
        if filename and len(files) == 1:
            said["filename"] = filename
        headers |= {f"X-{kind}-{name}": value for kind in KINDS for name, value in said.items()}
        query = {"project": request.project} if request.project else {}
        async with ClientSession(
            connector=TCPConnector(ssl=context, force_close=True),
            cookie_jar=DummyCookieJar(),
            timeout=ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
            headers={"User-Agent": f"Utsuwa/{__version__}"},
        ) as session:
            with translated(url):
                async with session.post(
                    (url / "1.0/images").with_query(query),
                    data=_sent(form, operation),
                    headers=headers,
                    allow_redirects=False,
                    proxy=proxy_for(proxies, url),
                ) as response:
                    begun = await _reply(url, response)
                secret = (begun.metadata or {}).get("secret", "")
                wait = (url / "1.0/operations" / begun.id / "wait").with_query(
                    {"secret": str(secret), "timeout": "-1", **query}
                )
                proxy = proxy_for(proxies, url)
                async with session.get(wait, allow_redirects=False, proxy=proxy) as response:
                    ended = await _reply(url, response)
            if ended.status_code != 200:
                raise InvalidRequest(f"{shown(url)} did not accept the image: {ended.err[:500]}")


def check_target(text: str) -> URL:
    """Return the URL of the server that an image is pushed to. Raises InvalidRequest."""
    url = check_url(text)
    if url.scheme != "https":
        raise InvalidRequest(f"Invalid target {text[:100]!r}: use https://HOST[:PORT]")
    return url.origin()


async def _sent(form: Form, operation: Operation) -> AsyncIterator[bytes]:
    done = 0
    async for chunk in form.chunks():
        yield chunk
        done += len(chunk)
        operation.set_progress(*_STAGE, percent=done * 100 // form.size)


async def _reply(url: URL, response: ClientResponse) -> _Record:
    """Return the operation in a reply. Raises InvalidRequest for an error, Unavailable for anything else."""
    data = bytearray()
    async for chunk in response.content.iter_chunked(64 * 1024):
        data += chunk
        if len(data) > _MAX_REPLY:
            raise Unavailable(f"{shown(url)} replied with more than {_MAX_REPLY} bytes")
    try:
        envelope = msgspec.json.decode(bytes(data), type=_Envelope, strict=False)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Unavailable(f"{shown(url)} is not a server of images (status {response.status})") from error
    if response.status >= 400 or envelope.metadata is None:
        reason = envelope.error[:500] or f"status {response.status}"
        raise InvalidRequest(f"{shown(url)} did not accept the image: {reason}")
    return envelope.metadata
