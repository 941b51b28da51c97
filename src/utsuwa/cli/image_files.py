"""The files of an image, as a server sends and takes them."""

from __future__ import annotations

import os

from utsuwa.cli import multipart
from utsuwa.cli.errors import CommandFailed
from utsuwa.cli.output import progress
from utsuwa.client.errors import ApiError
from utsuwa.client.image_server import ImageServer
from utsuwa.client.server import path_to, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from utsuwa.cli.multipart import Part
    from utsuwa.cli.session import Session
    from utsuwa.client.server import Server

_CHUNK = 256 * 1024


def download(session: Session, server: Server, fingerprint: str, label: str) -> Iterator[Part]:
    """Yield name and data of each file, which must be consumed before the next one, showing progress.

    Raises ApiError, BadAnswer.
    """
    if isinstance(server, ImageServer):
        return _of_image_server(session, server, fingerprint, label)
    reply = server.checked(server.raw("GET", path_to("images", fingerprint, "export")))
    total = int(reply.headers.get("content-length", 0))
    chunks = progress.counted(reply.stream(), total, label, show=session.shows_progress)
    kind = reply.headers.get("content-type", "")
    if "boundary=" in kind:
        return multipart.split(chunks, kind.partition("boundary=")[2].split(";")[0].strip('"'))
    return multipart.single(chunks, reply.headers.get("content-disposition", ""))


def _of_image_server(session: Session, server: ImageServer, fingerprint: str, label: str) -> Iterator[Part]:
    for name, chunks in server.files(fingerprint):
        yield name, progress.counted(chunks, 0, label, show=session.shows_progress)


def exists(server: Server, fingerprint: str) -> bool:
    """Return whether a server has an image."""
    try:
        server.get(path_to("images", fingerprint))
    except ApiError as error:
        if error.code != 404:
            raise
        return False
    return True


def upload(
    session: Session, server: Server, files: Sequence[str], properties: dict[str, str], *, public: bool
) -> dict[str, Any]:
    """Upload one file, or metadata and root file system, showing progress; return the operation.

    Raises CommandFailed, ApiError.
    """
    for path in files:
        if os.path.isdir(path):
            raise CommandFailed(f"{path} is a directory: a root file system has to be packed as a file")
        if not os.access(path, os.R_OK):
            raise CommandFailed(f"Cannot read {path}: it does not exist or is not readable")
    headers = {"X-LXD-public": "true" if public else "false"}
    if properties:
        fields = (f"{quote(key)}={quote(value)}" for key, value in properties.items())
        headers["X-LXD-properties"] = "&".join(fields)
    total = sum(os.path.getsize(path) for path in files)
    if len(files) == 1:
        headers["X-LXD-filename"] = os.path.basename(files[0])
        headers["Content-Type"] = "application/octet-stream"
        chunks = _read(files[0])
    else:
        boundary = os.urandom(16).hex()
        headers["Content-Type"] = f"multipart/form-data; boundary={boundary}"
        chunks = _form(boundary, {"metadata": files[0], "rootfs": files[1]})
    counted = progress.counted(chunks, total, "Transferring the image", show=session.shows_progress)
    found: dict[str, Any] = server.metadata(server.raw("POST", "/1.0/images", counted, headers))
    return found


def _read(path: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _form(boundary: str, files: dict[str, str]) -> Iterator[bytes]:
    for name, path in files.items():
        filename = os.path.basename(path).replace('"', "%22")
        yield (
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode()
        yield from _read(path)
        yield b"\r\n"
    yield f"--{boundary}--\r\n".encode()
