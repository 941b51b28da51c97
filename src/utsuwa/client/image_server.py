"""An image server (simplestreams) as a server whose images can be read, and nothing else."""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING
from urllib.parse import unquote, urljoin, urlsplit

from utsuwa.client import signatures, streams
from utsuwa.client.errors import ApiError, BadAnswer, Unreachable
from utsuwa.client.http import Connection
from utsuwa.client.server import Server
from utsuwa.core import simplestreams
from utsuwa.core.errors import InvalidRequest
from utsuwa.core.signatures import signed_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Any, NoReturn

    from utsuwa.client.http import FileBody, Opener, Reply
    from utsuwa.client.server import Trace
    from utsuwa.client.streams import ListedImage
    from utsuwa.core.simplestreams import StreamFile

_IMAGES = "/1.0/images"
_ALIASES = f"{_IMAGES}/aliases"
_DOCUMENT_LIMIT = 64 * 2**20
_REDIRECTS = 5
_MOVED = (301, 302, 303, 307, 308)
_NOT_FOUND = 404
_FILE_LIMIT = 64 * 2**30
"""In bytes, for files whose size the server does not state."""


class ImageServer(Server):
    """Answers the requests of the image commands from the documents of the server, which are read once."""

    def __init__(
        self,
        url: str,
        opener: Callable[[str], Opener],
        keyring: Callable[[str], str],
        *,
        trace: Trace | None = None,
    ) -> None:
        """`opener` returns what opens connections to the server of a URL, `keyring` the path for a host.

        Where there is a file, only signed documents are accepted.
        """
        self._url = url.rstrip("/") + "/"
        path = keyring(urlsplit(url).hostname or "")
        self._keyring = path if os.path.lexists(path) else ""
        self._opener_for = opener
        self._known: list[ListedImage] | None = None
        super().__init__(opener(url), urlsplit(url).netloc, trace=trace)

    def get(self, path: str, **query: str) -> Any:
        if path == _IMAGES:
            return [found.record for found in self._images()]
        if path == _ALIASES:
            return [
                {"name": alias["name"], "target": record["fingerprint"], "type": record["type"]}
                | {"description": alias["description"]}
                for record in self.get(_IMAGES)
                for alias in record["aliases"]
            ]
        below = path.removeprefix(f"{_IMAGES}/")
        if below == path:
            self._refuse()
        if path.startswith(f"{_ALIASES}/"):
            return self._alias(unquote(path.removeprefix(f"{_ALIASES}/")))
        return self._image(unquote(below)).record

    def get_with_etag(self, path: str, **query: str) -> tuple[Any, str]:
        return self.get(path, **query), ""

    def files(self, fingerprint: str) -> Iterator[tuple[str, Iterator[bytes]]]:
        """Yield name and data of each file of an image, which must be consumed before the next one.

        Raises BadAnswer at the end of a file that is not the one that the server has announced.
        """
        image, whole = self._image(fingerprint), hashlib.sha256()
        for file in image.files:
            yield file.name, self._file(file, whole)
        if whole.hexdigest() != image.record["fingerprint"]:
            raise BadAnswer(
                f"The files of image {fingerprint[:12]} do not match the fingerprint that {self._host} states"
            )

    def raw(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] | FileBody | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        self._refuse()

    def _send(self, method: str, path: str, body: Any, query: Mapping[str, str], etag: str = "") -> Reply:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise InvalidRequest(
            f"{self._url} is an image server: its images can be listed, copied and launched, and nothing else"
        )

    # Images

    def _images(self) -> list[ListedImage]:
        if self._known is None:
            omitted = simplestreams.omitted_prefix(self._url)
            machine, found = os.uname().machine, list[streams.ListedImage]()
            for path in simplestreams.product_paths(self._document(simplestreams.INDEX)):
                found += streams.images(self._document(path), machine, omitted)
            self._known = streams.newest_first(found)
        return self._known

    def _alias(self, name: str) -> dict[str, str]:
        for record in self.get(_IMAGES):
            if any(alias["name"] == name for alias in record["aliases"]):
                target = record["fingerprint"]
                return {"name": name, "target": target, "type": record["type"], "description": ""}
        raise ApiError(f"{self._url} has no image with the alias {name!r}", _NOT_FOUND)

    def _image(self, prefix: str) -> ListedImage:
        matching = [found for found in self._images() if found.record["fingerprint"].startswith(prefix)]
        if not prefix or not matching:
            raise ApiError(f"{self._url} has no image {prefix!r}", _NOT_FOUND)
        if len({found.record["fingerprint"] for found in matching}) > 1:
            raise InvalidRequest(f"Several fingerprints start with {prefix!r}: use a longer prefix")
        return matching[0]

    # Requests

    def _document(self, path: str) -> Any:
        data = self._signed(signed_path(path)) if self._keyring else self._received(path)
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise BadAnswer(f"{self._url}{path} is not valid JSON") from error

    def _signed(self, path: str) -> bytes:
        try:
            document = self._received(path)
        except Unreachable as error:
            raise Unreachable(f"{error}. The server's signatures are checked with {self._keyring}") from error
        return signatures.content(document, self._keyring, f"{self._url}{path}")

    def _received(self, path: str) -> bytes:
        data = bytearray()
        for chunk in self._fetch(path).stream():
            data += chunk
            if len(data) > _DOCUMENT_LIMIT:
                raise BadAnswer(f"{self._url}{path} is larger than {_DOCUMENT_LIMIT >> 20} MiB")
        return bytes(data)

    def _file(self, file: StreamFile, whole: hashlib._Hash) -> Iterator[bytes]:
        own, done = hashlib.sha256(), 0
        for chunk in self._fetch(file.path).stream():
            done += len(chunk)
            if done > (file.size or _FILE_LIMIT):
                break
            own.update(chunk)
            whole.update(chunk)
            yield chunk
        if done != (file.size or done) or (file.sha256 and own.hexdigest() != file.sha256):
            raise BadAnswer(f"{self._url}{file.path} is not the file that the index of the server names")

    def _fetch(self, path: str) -> Reply:
        """Request a file, following redirects to other servers as far as they use HTTPS."""
        url = urljoin(self._url, path)
        connection: Connection | None = self._connection
        for _ in range(_REDIRECTS):
            parts = urlsplit(url)
            if connection is None:
                connection = Connection(self._opener_for(url), parts.netloc)
            target = parts.path + (f"?{parts.query}" if parts.query else "")
            if self._trace:
                self._trace(f"> GET {url}")
            reply = connection.request("GET", target)
            if reply.status not in _MOVED:
                break
            reply.read()
            url, connection = urljoin(url, reply.headers.get("location", "")), None
            if urlsplit(url).scheme != "https":
                raise BadAnswer(f"{self._url}{path} redirects to {url[:200]!r}, which is not HTTPS")
        else:
            raise BadAnswer(f"{self._url}{path} redirects too often")
        if reply.status != 200:
            reply.read()
            raise Unreachable(f"{url} cannot be read: the server responds with status {reply.status}")
        return reply
