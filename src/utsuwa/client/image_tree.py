"""A tree of images that any web server can serve, in the simplestreams format of `images:`.

    streams/v1/index.json       names the products
    streams/v1/images.json      products, their versions and files
    streams/v1/*.sjson          both, signed
    images/OS/RELEASE/ARCHITECTURE/VARIANT/VERSION/...

LXD and Incus look for metadata under different names, so both are listed for the same file. Every file is
complete before the index names it, and the index is replaced as a whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil

from utsuwa.core.errors import HostError, InvalidRequest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

# Kernel's names of architectures, and Debian's, which the format uses.
_ARCHITECTURES = {
    "x86_64": "amd64",
    "i686": "i386",
    "aarch64": "arm64",
    "armv7l": "armhf",
    "ppc64le": "ppc64el",
    "s390x": "s390x",
    "riscv64": "riscv64",
}
_STREAMS = "streams/v1"
_PRODUCTS = "images"
_SQUASHFS = b"hsqs"
_NOT_FOUND = 127
"""The exit status for a program that is not installed."""
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


class ImageTree:
    """A tree in a directory. Raises HostError if the directory cannot be used."""

    def __init__(self, folder: str, *, keep: int = 2, key: str = "") -> None:
        """`keep` is the number of versions of a product that remain, `key` that of GnuPG for signing."""
        self._folder = os.path.abspath(folder)
        self._keep = keep
        self._key = key
        try:
            os.makedirs(os.path.join(self._folder, _STREAMS), exist_ok=True)
            self._products: dict[str, dict[str, Any]] = self._read()
        except OSError as error:
            raise HostError(f"Cannot use the directory {folder}: {error.strerror}") from error

    def _read(self) -> dict[str, dict[str, Any]]:
        path = self._path(f"{_STREAMS}/{_PRODUCTS}.json")
        try:
            with open(path, encoding="utf-8") as file:
                found = json.load(file)["products"]
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError) as error:
            raise HostError(f"{path} is not an index of images: {error}") from error
        if not isinstance(found, dict):
            raise HostError(f"{path} is not an index of images")
        return found

    def add(self, image: dict[str, Any], files: Iterable[Iterator[bytes]]) -> str:
        """Add an image as the newest version of its product, and return the product's name.

        `image` is a record of the API, `files` its metadata and root file system, or one file with both.
        Raises InvalidRequest if it cannot be in a tree, HostError if its files do not have its fingerprint.
        """
        name, product = _product(image)
        version = _version(image)
        folder = "/".join(("images", *map(_safe, name.split(":")), version))
        known = self._products.setdefault(name, {**product, "versions": {}})
        known.update(product)
        items = self._write(folder, image["fingerprint"], files)
        known["versions"][version] = {"items": items}
        return name

    def save(self) -> None:
        """Replace the index, and remove the files of versions that it does not name any more."""
        kept = {name: _newest(product, self._keep) for name, product in self._products.items()}
        folders = {os.path.dirname(path) for product in kept.values() for path in _paths(product)}
        for name, document in (
            (_PRODUCTS, {"content_id": _PRODUCTS, "format": "products:1.0", "products": kept}),
            ("index", _index(kept)),
        ):
            self._replace(name, document)
        self._products = kept
        self._sweep(folders)

    # Files

    def _path(self, relative: str) -> str:
        return os.path.join(self._folder, relative)

    def _write(self, folder: str, fingerprint: str, files: Iterable[Iterator[bytes]]) -> dict[str, Any]:
        new = self._path(f"images/.new-{secrets.token_hex(8)}")
        try:
            os.makedirs(new)
            whole, parts = hashlib.sha256(), []
            for number, chunks in enumerate(files):
                parts.append(_copy(chunks, os.path.join(new, str(number)), whole))
            if whole.hexdigest() != fingerprint:
                raise HostError(f"The files of image {fingerprint[:12]} do not match its fingerprint")
            named = _named(parts, fingerprint)
            for number, (name, _) in enumerate(named):
                os.rename(os.path.join(new, str(number)), os.path.join(new, name))
            target = self._path(folder)
            shutil.rmtree(target, ignore_errors=True)  # the same version again
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.rename(new, target)
        except OSError as error:
            raise HostError(f"Cannot write into {self._folder}: {error.strerror}") from error
        finally:
            shutil.rmtree(new, ignore_errors=True)
        return _items(folder, named)

    def _replace(self, name: str, document: dict[str, Any]) -> None:
        text = json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"
        signed = self._path(f"{_STREAMS}/{name}.sjson")
        if self._key:
            # A signed index names signed products.
            self._sign(signed, text.replace(b".json", b".sjson") if name == "index" else text)
        elif os.path.exists(signed):  # a signature of the previous content
            os.unlink(signed)
        self._store(f"{_STREAMS}/{name}.json", text)

    def _sign(self, target: str, content: bytes) -> None:
        """Write content with its signature around it; gpg shows its messages and may ask for a passphrase."""
        unsigned, new = f"{target}.unsigned", f"{target}.new"
        options = ("--batch", "--yes", "--local-user", self._key, "--output", new, "--clearsign", unsigned)
        try:
            with open(unsigned, "wb") as file:
                file.write(content)
            status = os.spawnvp(os.P_WAIT, "gpg", ["gpg", *options])
            if status == _NOT_FOUND:
                raise HostError("Install gpg, which signs the tree")
            if status != 0:
                raise HostError(f"gpg could not sign with the key {self._key!r}")
            os.replace(new, target)
        except OSError as error:
            raise HostError(f"Cannot write {target}: {error.strerror}") from error
        finally:
            for path in (unsigned, new):
                if os.path.exists(path):
                    os.unlink(path)

    def _store(self, relative: str, content: bytes) -> None:
        path = self._path(relative)
        new = f"{path}.new"
        try:
            with open(new, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, path)
        except OSError as error:
            raise HostError(f"Cannot write {path}: {error.strerror}") from error

    def _sweep(self, kept: set[str]) -> None:
        """Remove versions without an entry, and what an interrupted run has left."""
        above = {os.path.dirname(folder) for folder in kept}
        for here, folders, files in os.walk(self._path("images"), topdown=False):
            relative = os.path.relpath(here, self._folder)
            unfinished = os.path.basename(here).startswith(".new-")
            if (files and relative not in kept and relative.count("/") == _DEPTH) or unfinished:
                shutil.rmtree(here, ignore_errors=True)
            elif not folders and not files and relative not in above:
                os.rmdir(here)


_DEPTH = "images/OS/RELEASE/ARCHITECTURE/VARIANT/VERSION".count("/")


class _Part:
    """A file of an image: its first bytes, its hash and its size."""

    def __init__(self, begin: bytes, sha256: str, size: int) -> None:
        self.begin = begin
        self.sha256 = sha256
        self.size = size


def _copy(chunks: Iterator[bytes], path: str, whole: hashlib._Hash) -> _Part:
    begin, own, size = b"", hashlib.sha256(), 0
    with open(path, "wb") as file:
        for chunk in chunks:
            begin = begin or chunk[: len(_SQUASHFS)]
            own.update(chunk)
            whole.update(chunk)
            size += len(chunk)
            file.write(chunk)
    return _Part(begin, own.hexdigest(), size)


def _named(parts: list[_Part], fingerprint: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the name and the entry of each file. Raises InvalidRequest."""
    entries = [{"sha256": part.sha256, "size": part.size} for part in parts]
    if len(parts) == 1:
        return [("lxd_combined.tar.gz", entries[0])]
    if len(parts) != 2:
        raise InvalidRequest(f"An image has one file or two, not {len(parts)}")
    squashfs = parts[1].begin.startswith(_SQUASHFS)
    entries[0]["combined_squashfs_sha256" if squashfs else "combined_rootxz_sha256"] = fingerprint
    return [("lxd.tar.xz", entries[0]), ("root.squashfs" if squashfs else "root.tar.xz", entries[1])]


def _items(folder: str, named: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Return the entries of a version; the name of LXD's metadata is repeated with that of Incus."""
    items = {}
    for name, entry in named:
        kind = "squashfs" if name == "root.squashfs" else name
        items[name] = {**entry, "path": f"{folder}/{name}", "ftype": kind}
        if name.startswith("lxd"):
            other = f"incus{name.removeprefix('lxd')}"
            items[other] = {**items[name], "ftype": other}
    return items


def _product(image: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the name of an image's product, and its fields. Raises InvalidRequest."""
    if image["type"] != "container":
        raise InvalidRequest(f"Image {image['fingerprint'][:12]} is one of virtual machines")
    properties = image["properties"]
    aliases = sorted(alias["name"] for alias in image["aliases"] or () if "," not in alias["name"])
    system = properties.get("os") or "custom"
    release = properties.get("release") or (aliases[0] if aliases else image["fingerprint"][:12])
    variant = properties.get("variant") or "default"
    architecture = _ARCHITECTURES.get(image["architecture"], image["architecture"])
    fields = {
        "aliases": ",".join(aliases),
        "arch": architecture,
        "os": system,
        "release": release,
        "release_title": properties.get("release_title") or release,
        "requirements": {},
        "lxd_requirements": {},
        "variant": variant,
    }
    return ":".join(_safe(part) for part in (system.lower(), release, architecture, variant)), fields


def _version(image: dict[str, Any]) -> str:
    """Return the version of an image, which sorts by time: its serial, or when it was created."""
    serial = _safe(str(image["properties"].get("serial", "")))
    created = image["created_at"]
    if created.startswith(("0001-", "1970-")):
        created = image["uploaded_at"]
    digits = re.sub("[^0-9]", "", created[:16])
    return serial if re.match("[0-9]{8}", serial) else f"{digits[:8]}_{digits[8:12]}"


def _safe(text: str) -> str:
    """Return a text as part of a path, and of a product's name."""
    return _UNSAFE.sub("-", text).lstrip(".") or "-"


def _newest(product: dict[str, Any], keep: int) -> dict[str, Any]:
    names = sorted(product["versions"])[-keep:]
    return {**product, "versions": {name: product["versions"][name] for name in names}}


def _paths(product: dict[str, Any]) -> Iterator[str]:
    for version in product["versions"].values():
        for item in version["items"].values():
            yield item["path"]


def _index(products: dict[str, Any]) -> dict[str, Any]:
    entry = {
        "datatype": "image-downloads",
        "format": "products:1.0",
        "path": f"{_STREAMS}/{_PRODUCTS}.json",
        "products": sorted(products),
    }
    return {"format": "index:1.0", "index": {_PRODUCTS: entry}}
