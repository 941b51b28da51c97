"""The files of the web page, as the build has left them in the package."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass, replace
from functools import cache
from http import HTTPStatus
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "page"
"""Written by `web/build.mjs`: `NAME.gz`. It does not exist in a package that was built without Node."""
_INDEX = "index.html"
_ASSETS = "assets/"
_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
}
_MISSING = b"""\
<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Utsuwa</title>
<h1>The web page is not installed</h1>
<p>This package of Utsuwa was built on a machine without Node.js, which the page is built with. Install
Node.js 18 or newer with npm (on Debian: <code>apt install nodejs npm</code>), and install Utsuwa again.
Everything else works without it.</p>
"""


@dataclass(frozen=True)
class PageFile:
    """A file of the page."""

    packed: bytes
    """Compressed by gzip."""
    type: str
    etag: str
    lasting: bool
    """Whether its name changes with its content."""
    status: int = HTTPStatus.OK

    def unpacked(self) -> bytes:
        return gzip.decompress(self.packed)


def find_view(path: str) -> PageFile | None:
    """Return the file that is shown at `/ui/PATH`; None if there is none. Blocking.

    A path that is not an asset is a view, which the page itself shows.
    """
    if not FOLDER.is_dir():  # it may be built later
        return None if path.startswith(_ASSETS) else missing()
    files = _load()
    if path.startswith(_ASSETS):
        return files.get(path)
    return files[_INDEX] if path.endswith(".html") else files.get(path, files[_INDEX])


def find(path: str) -> PageFile | None:
    """Return a file of the page by its exact path; None if there is none. Blocking."""
    return _load().get(path) if FOLDER.is_dir() else None


def missing() -> PageFile:
    """Return what is shown in place of a page that has not been built."""
    page = _page_file(_INDEX, gzip.compress(_MISSING))
    return replace(page, status=HTTPStatus.NOT_IMPLEMENTED)


@cache
def _load() -> dict[str, PageFile]:
    """Read all files, about 130 kB."""
    found = {}
    for file in FOLDER.rglob("*.gz"):
        name = file.relative_to(FOLDER).as_posix().removesuffix(".gz")
        found[name] = _page_file(name, file.read_bytes())
    return found


def _page_file(name: str, packed: bytes) -> PageFile:
    etag = f'"{hashlib.sha256(packed).hexdigest()[:32]}"'
    return PageFile(packed, _TYPES[Path(name).suffix], etag, name.startswith(_ASSETS))
