"""The files of an image, as a server sends them."""

from __future__ import annotations

from utsuwa.cli import multipart
from utsuwa.cli.output import progress
from utsuwa.client.image_server import ImageServer
from utsuwa.client.server import path_to

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from utsuwa.cli.multipart import Part
    from utsuwa.cli.session import Session
    from utsuwa.client.server import Server


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
