"""Images at a URL of their own, which replies with the location and the hash in its headers."""

from __future__ import annotations

import platform

from utsuwa.core.errors import InvalidRequest
from utsuwa.images.records import check_filename
from utsuwa.images.remote.bodies import receive
from utsuwa.images.remote.records import (
    DIRECT,
    KINDS,
    Found,
    Progress,
    RemoteSource,
    check_url,
    is_full_fingerprint,
)
from utsuwa.images.remote.web import Web, shown
from utsuwa.images.upload import Upload
from utsuwa.version import __version__


async def locate(web: Web, text: str) -> RemoteSource:
    """Ask a URL for its image. Raises InvalidRequest, NotFound, Unavailable."""
    url = check_url(text)
    sent = {f"{kind}-Server-Architectures": platform.machine() for kind in KINDS}
    sent |= {f"{kind}-Server-Version": __version__ for kind in KINDS}
    async with web.opened(url, method="HEAD", headers=sent) as response:
        for kind in KINDS:
            fingerprint = response.headers.get(f"{kind}-Image-Hash", "")
            location = response.headers.get(f"{kind}-Image-URL", "")
            if fingerprint and location:
                break
        else:
            raise InvalidRequest(
                f"{shown(url)} is not the URL of an image: "
                "its reply has no headers LXD-Image-Hash and LXD-Image-URL"
            )
    if not is_full_fingerprint(fingerprint):
        raise InvalidRequest(f"{shown(url)} states an invalid hash {fingerprint[:80]!r} of its image")
    return RemoteSource(location, DIRECT, fingerprint)


class DirectFile:
    """One request for a file whose hash is known."""

    def __init__(self, web: Web, source: RemoteSource) -> None:
        self._web = web
        self._source = source

    async def find(self) -> Found:
        url = check_url(self._source.server)

        async def download(upload: Upload, progress: Progress) -> str:
            await receive(self._web, url, upload, "metadata", progress)
            return check_filename(url.name)

        return Found(self._source.wanted, 0, download)
