"""What is asked of other servers, and what they answer."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from yarl import URL

from utsuwa.core.errors import InvalidRequest
from utsuwa.core.image_source import ImageOrigin
from utsuwa.images.upload import Upload

SIMPLESTREAMS, LXD, DIRECT = "simplestreams", "lxd", "direct"
KINDS = ("LXD", "Incus")
"""The servers whose headers have their names: all are sent and understood."""
_FULL = re.compile(r"[0-9a-f]{64}\Z")
_MAX_URL = 2000
_MAX_NAME = 500


def is_full_fingerprint(text: str) -> bool:
    return bool(_FULL.match(text))


@dataclass(frozen=True)
class RemoteSource:
    """An image on another server.

    `wanted` is an alias, a fingerprint or a prefix of one; `secret` gives access to a private image, the
    image is in `project` (both for the protocol `lxd`).
    """

    server: str
    protocol: str
    wanted: str
    certificate: str = ""
    secret: str = ""
    project: str = ""

    def __post_init__(self) -> None:
        """Raise InvalidRequest for what no server could answer."""
        if not self.wanted or len(self.wanted) > _MAX_NAME or not self.wanted.isprintable():
            raise InvalidRequest("Specify the image of the server by alias or fingerprint")
        check_url(self.server)

    @property
    def is_fingerprint(self) -> bool:
        """Whether it is known by its full hash."""
        return is_full_fingerprint(self.wanted)

    @property
    def origin(self) -> ImageOrigin:
        return ImageOrigin(self.server, self.protocol, self.certificate, self.wanted)

    def follows(self, fingerprint: str) -> bool:
        """Whether what is found may be another image later, and will be accessible without a secret."""
        return not self.secret and not fingerprint.startswith(self.wanted)


def check_url(text: str) -> URL:
    """Return the URL of a server. Raises InvalidRequest."""
    try:
        url = URL(text)
        valid = url.scheme in ("http", "https") and bool(url.host) and url.user is None
    except ValueError:
        url, valid = URL(), False
    if not valid or len(text) > _MAX_URL or not text.isprintable() or " " in text:
        raise InvalidRequest(f"Invalid URL {text[:100]!r} of an image server: use https://HOST[:PORT]")
    return url


class GivenSource(Protocol):
    """A source in a request, for an image or for an instance."""

    server: str
    protocol: str
    certificate: str
    secret: str
    project: str


def source_of(given: GivenSource, *names: str) -> RemoteSource:
    """Return the source of a request: the image is the first of `names` that is given.

    Raises InvalidRequest.
    """
    protocol = {"": LXD, "incus": LXD}.get(given.protocol, given.protocol)
    if protocol not in (SIMPLESTREAMS, LXD):
        raise InvalidRequest(
            f"Unknown protocol {protocol[:40]!r} of an image server: use simplestreams or lxd"
        )
    private = protocol == LXD
    return RemoteSource(
        given.server,
        protocol,
        next(filter(None, names), ""),
        certificate=given.certificate,
        secret=given.secret if private else "",
        project=given.project if private else "",
    )


@dataclass(frozen=True)
class Found:
    """An image as its server describes it; `size` is in bytes, 0 if it is not known.

    `download` receives its files, and returns the file name. It raises what is wrong with them.
    """

    fingerprint: str
    size: int
    download: Callable[[Upload, Progress], Awaitable[str]]
    properties: Mapping[str, str] = field(default_factory=dict)
    expires_at: datetime | None = None


class Progress(Protocol):
    """Is told how far a download is."""

    def begin(self, label: str, total: int) -> None:
        """A file of `total` bytes follows, 0 if that is not known."""

    def add(self, count: int) -> None:
        """So many bytes more have been received."""
