"""The documents of simplestreams servers: an index, and products with versions and files.

Which files make an image, and how its aliases are built, is what LXD's clients do. Only what is asked for is
checked in full, as a server lists thousands of images.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

import msgspec

from utsuwa.core.architectures import canonical_architecture
from utsuwa.core.errors import InvalidImage, InvalidRequest, NotFound
from utsuwa.images.upload import MAX_UPLOAD, Part

_HASH = re.compile(r"[0-9a-f]{64}\Z")
_PREFIX = re.compile(r"[0-9a-f]{1,64}\Z")
_PATH = re.compile(r"[A-Za-z0-9_+~:@=,.-]+(?:/[A-Za-z0-9_+~:@=,.-]+)*\Z")
_SPLIT = ("lxd.tar.xz", "incus.tar.xz")
_UNIFIED = ("lxd_combined.tar.gz", "incus_combined.tar.gz")
_ROOTS = ("squashfs", "root.tar.xz")
"""The forms of a root file system, the preferred one first."""
_MAX_INDICES = 16
_MAX_PATH = 500
_DEFAULT_SYSTEMS = {"https://cloud-images.ubuntu.com": "ubuntu/"}
"""What is omitted in the aliases of a server."""


class _Index(msgspec.Struct):
    index: dict[str, _IndexEntry] = {}


class _IndexEntry(msgspec.Struct):
    datatype: str = ""
    path: str = ""
    products: list[str] = []


class _Item(msgspec.Struct):
    ftype: str = ""
    path: str = ""
    sha256: str = ""
    size: int = 0
    combined_sha256: str = ""
    combined_squashfs: str = msgspec.field(default="", name="combined_squashfs_sha256")
    combined_rootxz: str = msgspec.field(default="", name="combined_rootxz_sha256")


class _Version(msgspec.Struct):
    items: dict[str, _Item] = {}
    label: str = ""


class _Product(msgspec.Struct):
    versions: dict[str, _Version] = {}
    aliases: str = ""
    arch: str = ""
    os: str = ""
    release: str = ""
    release_title: str = ""
    version: str = ""
    variant: str = ""
    support_eol: str | None = None
    lxd_requirements: dict[str, str] | None = None
    requirements: dict[str, str] | None = None


class _Products(msgspec.Struct):
    products: dict[str, _Product] = {}


@dataclass(frozen=True)
class StreamFile:
    """A file of an image: `path` is relative to the server's URL, `size` is 0 if it is not stated."""

    part: Part
    path: str
    sha256: str
    size: int


@dataclass(frozen=True)
class StreamImage:
    """An image in one form of its root file system; `serial` is the name of the version."""

    product: _Product
    serial: str
    version: _Version
    meta: _Item
    root: _Item | None

    @property
    def fingerprint(self) -> str:
        """The hash of all files, as the server states it; empty if it does not."""
        if self.root is None:
            return self.meta.sha256
        if self.root.ftype == "squashfs":
            return self.meta.combined_squashfs
        return self.meta.combined_rootxz or self.meta.combined_sha256

    @property
    def architecture(self) -> str:
        """The kernel's name; empty if it is unknown."""
        return canonical_architecture(self.product.arch) or ""

    @property
    def rank(self) -> tuple[str, str, str, str, bool]:
        """The order of preference, the best one is the smallest, except for the version: newer is better."""
        product = self.product
        form = self.root is not None and self.root.ftype != _ROOTS[0]
        return product.os, product.release, product.variant or "\U0010ffff", self.serial, form

    @property
    def filename(self) -> str:
        return self.meta.path.rpartition("/")[2]

    @property
    def expires_at(self) -> datetime | None:
        try:
            return datetime.strptime(self.product.support_eol or "", "%Y-%m-%d").replace(tzinfo=UTC)
        except ValueError:
            return None

    @property
    def properties(self) -> dict[str, str]:
        product, label = self.product, self.version.label
        named = f"{product.os} {product.release_title or product.release} {product.arch}".strip()
        found = {
            "os": product.os,
            "release": product.release,
            "version": product.version,
            "architecture": product.arch,
            "label": label,
            "serial": self.serial,
            "description": f"{named} ({label}) ({self.serial})" if label else f"{named} ({self.serial})",
            "variant": product.variant,
            "type": self.root.ftype if self.root is not None else "tar.gz",
        }
        needs = (product.lxd_requirements or {}) | (product.requirements or {})
        found |= {f"requirements.{name}": value for name, value in needs.items()}
        return {name: value for name, value in found.items() if value}

    def files(self) -> list[StreamFile]:
        """Return the files in the order in which they are hashed. Raises InvalidImage if one is invalid."""
        found = [_file("metadata", self.meta)]
        return found if self.root is None else [*found, _file("rootfs", self.root)]


def _file(part: Part, item: _Item) -> StreamFile:
    what = f"The server lists an invalid file {item.path[:100]!r}"
    if not is_path(item.path):
        raise InvalidImage(f"{what}: its path is not one below the server's URL")
    if item.sha256 and not _HASH.match(item.sha256):
        raise InvalidImage(f"{what}: its sha256 is not one")
    if not 0 <= item.size <= MAX_UPLOAD:
        raise InvalidImage(f"{what}: its size is {item.size} bytes")
    return StreamFile(part, item.path, item.sha256, item.size)


def is_path(path: str) -> bool:
    """Whether a path leads to below the URL of its server."""
    parts = path.split("/")
    return len(path) <= _MAX_PATH and bool(_PATH.match(path)) and not {".", ".."} & set(parts)


T = TypeVar("T")


def _decode(data: bytes, record: type[T], what: str) -> T:
    try:
        return msgspec.json.decode(data, type=record, strict=False)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidImage(f"{what} of the image server is invalid: {str(error)[:200]}") from error


def product_paths(data: bytes) -> list[str]:
    """Return the paths of the documents that list images, from index.json. Raises InvalidImage."""
    entries = _decode(data, _Index, "index.json").index.values()
    found = [entry.path for entry in entries if entry.datatype == "image-downloads" and entry.products]
    for path in found:
        if not is_path(path):
            raise InvalidImage(f"index.json of the image server has an invalid path {path[:100]!r}")
    if len(found) > _MAX_INDICES:
        raise InvalidImage(f"index.json of the image server refers to more than {_MAX_INDICES} documents")
    return found


def images(data: bytes) -> Iterator[StreamImage]:
    """Return all images of containers that a document lists; blocking. Raises InvalidImage."""
    for product in _decode(data, _Products, "A list of images").products.values():
        for serial, version in product.versions.items():
            if not re.match(r"[0-9]{8}", serial):
                continue
            for meta, root in _pairs(version.items.values()):
                image = StreamImage(product, serial, version, meta, root)
                if image.architecture and _HASH.match(image.fingerprint):
                    yield image


def _pairs(items: Iterable[_Item]) -> Iterator[tuple[_Item, _Item | None]]:
    listed = list(items)
    for meta in listed:
        if meta.ftype in _UNIFIED:
            yield meta, None
        elif meta.ftype in _SPLIT:
            yield from ((meta, root) for root in listed if root.ftype in _ROOTS)


def choose(
    found: Iterable[StreamImage], server: str, wanted: str, architectures: Sequence[str]
) -> StreamImage:
    """Return the newest image with the alias `wanted`, or that with this fingerprint or prefix.

    An alias is `debian/12`, for the first of `architectures` that there is, or `debian/12/arm64`. Raises
    NotFound, InvalidRequest.
    """
    listed = list(found)
    omitted = next((short for url, short in _DEFAULT_SYSTEMS.items() if server.startswith(url)), "")
    named = [image for image in listed if _has_alias(image, wanted, omitted)]
    if named:
        return _best(named, wanted, architectures)
    exact = [image for image in listed if _PREFIX.match(wanted) and image.fingerprint.startswith(wanted)]
    if not exact:
        raise NotFound(f"The image server {server} has no image {wanted[:100]!r}")
    if len({image.fingerprint for image in exact}) > 1:
        raise InvalidRequest(
            f"Several images of {server} have fingerprints that begin with {wanted!r}: use a longer prefix"
        )
    return exact[0]


def _has_alias(image: StreamImage, wanted: str, omitted: str) -> bool:
    return any(
        wanted in (name, f"{name}/{image.product.arch}")
        for alias in image.product.aliases.split(",")
        if (name := alias.strip().removeprefix(omitted))
    )


def _best(named: list[StreamImage], wanted: str, architectures: Sequence[str]) -> StreamImage:
    own = [image for image in named if wanted.endswith(f"/{image.product.arch}")] or named
    for architecture in architectures:
        suitable = [image for image in own if image.architecture == architecture]
        if suitable:
            break
    else:
        if own is named:
            there = ", ".join(sorted({image.product.arch for image in named}))
            raise NotFound(
                f"The image {wanted[:100]!r} does not exist for the architecture {architectures[0]}, "
                f"only for {there}"
            )
        suitable = own
    first = min(image.rank[:3] for image in suitable)
    of_product = [image for image in suitable if image.rank[:3] == first]
    newest = max(image.serial for image in of_product)
    return min((image for image in of_product if image.serial == newest), key=lambda image: image.rank)
