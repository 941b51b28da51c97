"""The documents of simplestreams servers: an index, and products with versions and files.

Which files make an image, and how its aliases are built, is what LXD's clients do. Documents are values as
`json.loads` returns them. What a server states wrongly is left out; the files of an image are only checked
when they are requested, as a server lists thousands of images. Images of virtual machines are left out.

The client uses this module too, and should start quickly: it imports next to nothing.
"""

from __future__ import annotations

import re

from utsuwa.core.architectures import canonical_architecture
from utsuwa.core.errors import InvalidImage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Literal

    Record = dict[str, Any]

INDEX = "streams/v1/index.json"

_HASH = re.compile(r"[0-9a-f]{64}\Z")
_PATH = re.compile(r"[A-Za-z0-9_+~:@=,.-]+(?:/[A-Za-z0-9_+~:@=,.-]+)*\Z")
_SERIAL = re.compile(r"[0-9]{8}")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}\Z")
_MAX_PATH = 500
_MAX_DOCUMENTS = 16
_MAX_SIZE = 64 * 2**30
_UNIFIED = ("lxd_combined.tar.gz", "incus_combined.tar.gz")
_SPLIT = ("lxd.tar.xz", "incus.tar.xz")
SQUASHFS = "squashfs"
_DELTA = "squashfs.vcdiff"
_ROOTS = (SQUASHFS, "root.tar.xz")
"""The forms of a root file system, the preferred one first."""
_OMITTED = {"https://cloud-images.ubuntu.com": "ubuntu/"}
"""The prefix of a server's aliases that users leave out."""


class StreamFile:
    """A file of an image: `path` is relative to the server's URL.

    `sha256` is empty and `size` is 0 if it is not stated.
    """

    __slots__ = ("part", "path", "sha256", "size")

    def __init__(self, part: Literal["metadata", "rootfs"], path: str, sha256: str, size: int) -> None:
        self.part: Literal["metadata", "rootfs"] = part
        self.path = path
        self.sha256 = sha256
        self.size = size

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


class StreamImage:
    """An image in one form of its root file system; `serial` is the name of the version."""

    __slots__ = ("_meta", "_product", "_root", "_version", "fingerprint", "serial")

    def __init__(
        self, product: Record, serial: str, version: Record, meta: Record, root: Record | None
    ) -> None:
        self._product = product
        self.serial = serial
        self._version = version
        self._meta = meta
        self._root = root
        self.fingerprint = self._stated_fingerprint()
        """The hash of all files, as the server states it; empty if it does not."""

    def _stated_fingerprint(self) -> str:
        if self._root is None:
            found = _text(self._meta, "sha256")
        elif self.is_squashfs:
            found = _text(self._meta, "combined_squashfs_sha256")
        else:
            found = _text(self._meta, "combined_rootxz_sha256") or _text(self._meta, "combined_sha256")
        return found if _HASH.match(found) else ""

    @property
    def is_squashfs(self) -> bool:
        """Whether the root file system is a squashfs of its own."""
        return self._root is not None and _text(self._root, "ftype") == SQUASHFS

    @property
    def architecture(self) -> str:
        """The kernel's name; empty if it is unknown."""
        return canonical_architecture(self.named_architecture) or ""

    @property
    def named_architecture(self) -> str:
        """The name that aliases use, such as amd64."""
        return _text(self._product, "arch")

    @property
    def rank(self) -> tuple[str, str, str, str, bool]:
        """The order of preference, the best one is the smallest, except for the version: newer is better."""
        system, release = _text(self._product, "os"), _text(self._product, "release")
        variant = _text(self._product, "variant") or "\U0010ffff"
        return system, release, variant, self.serial, self._root is not None and not self.is_squashfs

    @property
    def filename(self) -> str:
        return _text(self._meta, "path").rpartition("/")[2]

    @property
    def support_end(self) -> str:
        """The last day of support, as YYYY-MM-DD; empty if it is not stated."""
        text = _text(self._product, "support_eol")
        return text if _DATE.match(text) else ""

    @property
    def properties(self) -> dict[str, str]:
        product, label = self._product, _text(self._version, "label")
        system, release = _text(product, "os"), _text(product, "release")
        named = f"{system} {_text(product, 'release_title') or release} {self.named_architecture}".strip()
        found = {
            "os": system,
            "release": release,
            "version": _text(product, "version"),
            "architecture": self.named_architecture,
            "label": label,
            "serial": self.serial,
            "description": f"{named} ({label}) ({self.serial})" if label else f"{named} ({self.serial})",
            "variant": _text(product, "variant"),
            "type": "tar.gz" if self._root is None else _text(self._root, "ftype"),
        }
        needs = _dict(product.get("lxd_requirements")) | _dict(product.get("requirements"))
        found |= {f"requirements.{name}": value for name in needs if (value := _text(needs, name))}
        return {name: value for name, value in found.items() if value}

    def aliases(self, omitted: str) -> list[str]:
        """Return the aliases of the product, without a prefix that users leave out, and no architecture."""
        listed = _text(self._product, "aliases").split(",")
        names = (name.strip().removeprefix(omitted) for name in listed)
        return [name for name in names if name and name.isprintable()]

    def deltas(self) -> list[tuple[str, StreamFile]]:
        """Return files with the difference to the squashfs of another version, and that image's fingerprint.

        Those that are invalid are left out.
        """
        found = []
        versions = _dict(self._product.get("versions"))
        for item in _items(self._version) if self.is_squashfs else ():
            base = _dict(versions.get(_text(item, "delta_base")))
            if _text(item, "ftype") != _DELTA or not base:
                continue
            try:
                file = _file("rootfs", item)
            except InvalidImage:
                continue
            for meta, root in _forms(base):
                image = StreamImage(self._product, "", base, meta, root)
                if image.is_squashfs and image.fingerprint:
                    found.append((image.fingerprint, file))
        return found

    def files(self) -> list[StreamFile]:
        """Return the files in the order in which they are hashed. Raises InvalidImage if one is invalid."""
        found = [_file("metadata", self._meta)]
        return found if self._root is None else [*found, _file("rootfs", self._root)]


def _file(part: Literal["metadata", "rootfs"], item: Record) -> StreamFile:
    path, sha256, size = _text(item, "path"), _text(item, "sha256"), _size(item.get("size", 0))
    if not is_path(path):
        raise _invalid(path, "its path is not one below the server's URL")
    if sha256 and not _HASH.match(sha256):
        raise _invalid(path, "its sha256 is not one")
    if not 0 <= size <= _MAX_SIZE:
        raise _invalid(path, "its size is not one of an image")
    return StreamFile(part, path, sha256, size)


def _invalid(path: str, why: str) -> InvalidImage:
    return InvalidImage(f"The server lists an invalid file {path[:100]!r}: {why}")


def _size(value: Any) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        return int(value)
    return value if isinstance(value, int) else -1


def is_path(path: str) -> bool:
    """Return whether a path leads to below the URL of its server."""
    return len(path) <= _MAX_PATH and bool(_PATH.match(path)) and not {".", ".."} & set(path.split("/"))


def omitted_prefix(server: str) -> str:
    """Return the prefix of a server's aliases that users leave out."""
    return next((prefix for url, prefix in _OMITTED.items() if server.startswith(url)), "")


def product_paths(index: Any) -> list[str]:
    """Return the paths of the documents that list images, from `INDEX`. Raises InvalidImage."""
    entries = _dict(index).get("index")
    if not isinstance(entries, dict):
        raise InvalidImage(f"{INDEX} is not an index: is this an image server (simplestreams)?")
    found = []
    for entry in map(_dict, entries.values()):
        path = _text(entry, "path")
        if _text(entry, "datatype") != "image-downloads" or not entry.get("products"):
            continue
        if not is_path(path):
            raise InvalidImage(f"{INDEX} of the image server has an invalid path {path[:100]!r}")
        found.append(path)
    if len(found) > _MAX_DOCUMENTS:
        raise InvalidImage(f"{INDEX} of the image server refers to more than {_MAX_DOCUMENTS} documents")
    return found


def products(document: Any) -> Iterator[list[StreamImage]]:
    """Yield the images of each product that a document lists, the newest version first.

    Those of one version differ in the form of the root file system only; the preferred one is the first.
    """
    for product in map(_dict, _dict(_dict(document).get("products")).values()):
        if canonical_architecture(_text(product, "arch")) is None:
            continue
        versions = _dict(product.get("versions"))
        found = []
        for serial in sorted(filter(_SERIAL.match, versions), reverse=True):
            version = _dict(versions[serial])
            for meta, root in _forms(version):
                image = StreamImage(product, serial, version, meta, root)
                if image.fingerprint:
                    found.append(image)
        yield found


def _forms(version: Record) -> Iterator[tuple[Record, Record | None]]:
    """Yield the metadata and root file system of each form that a version has."""
    by_type = {_text(item, "ftype"): item for item in _items(version)}
    for unified in filter(by_type.get, _UNIFIED):
        yield by_type[unified], None
    for root in filter(by_type.get, _ROOTS):
        for meta in filter(by_type.get, _SPLIT):
            yield by_type[meta], by_type[root]


def _items(version: Record) -> list[Record]:
    return [_dict(item) for item in _dict(version.get("items")).values()]


def _dict(value: Any) -> Record:
    return value if isinstance(value, dict) else {}


def _text(record: Record, name: str) -> str:
    value = record.get(name)
    return value if isinstance(value, str) else ""
