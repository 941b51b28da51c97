"""The documents of an image server (simplestreams), as records of the REST API.

Which files make an image, and how its aliases are built, is what LXD's client does. Images of virtual
machines are left out. Whatever a server states wrongly is left out or refused.
"""

from __future__ import annotations

import re

from utsuwa.client.errors import BadAnswer
from utsuwa.core.architectures import canonical_architecture

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    Record = dict[str, Any]
    File = tuple[str, str, str, int]
    """Path below the server's URL, name, SHA-256 (may be empty), and size."""

INDEX = "streams/v1/index.json"
_HASH = re.compile(r"[0-9a-f]{64}\Z")
_PATH = re.compile(r"[A-Za-z0-9_+~:@=,.-]+(?:/[A-Za-z0-9_+~:@=,.-]+)*\Z")
_SERIAL = re.compile(r"([0-9]{4})([0-9]{2})([0-9]{2})")
_NEVER = "1970-01-01T00:00:00Z"
_ROOTS = ("squashfs", "root.tar.xz")
"""The forms of a root file system, the preferred one first."""


def product_paths(index: Any) -> list[str]:
    """Return the paths of the documents that list images, from `INDEX`. Raises BadAnswer."""
    found = []
    for entry in _dict(_dict(index).get("index")).values():
        path = _text(_dict(entry), "path")
        if _text(_dict(entry), "datatype") != "image-downloads" or not _dict(entry).get("products"):
            continue
        if not is_path(path):
            raise BadAnswer(f"The index of the image server has an invalid path {path[:100]!r}")
        found.append(path)
    if not found:
        raise BadAnswer("The server has no index of images: is it an image server (simplestreams)?")
    return found


def is_path(path: str) -> bool:
    """Return whether a path leads to below the URL of its server."""
    return len(path) <= 500 and bool(_PATH.match(path)) and not {".", ".."} & set(path.split("/"))


class StreamImage:
    """One image: its record, as `/1.0/images` has it, and its files."""

    def __init__(self, record: Record, files: list[File]) -> None:
        self.record = record
        self.files = files


def images(products: Any, machine: str, omitted: str = "") -> Iterator[StreamImage]:
    """Yield all images that a document lists. `machine` is the kernel's name of this architecture.

    Aliases lead to the newest version of a product, without the architecture only to that of this machine.
    `omitted` is a prefix that the server's aliases have, and users leave out.
    """
    for product in _dict(_dict(products).get("products")).values():
        fields = _dict(product)
        architecture = canonical_architecture(_text(fields, "arch")) or ""
        versions = _dict(fields.get("versions"))
        serials = sorted(serial for serial in versions if _SERIAL.match(serial))
        for serial in reversed(serials if architecture else ()):
            newest = serial == serials[-1]
            names = _aliases(fields, local=architecture == machine, omitted=omitted) if newest else []
            found = _version(fields, serial, _dict(versions[serial]))
            if found is not None:
                found.record["architecture"] = architecture
                found.record["aliases"] = [{"name": name, "description": ""} for name in names]
                yield found


def _version(product: Record, serial: str, version: Record) -> StreamImage | None:
    """Return the image of a version, in the preferred form of those that it has; None if it has none."""
    items = [_dict(item) for item in _dict(version.get("items")).values()]
    by_type = {_text(item, "ftype"): item for item in items}
    for unified in ("lxd_combined.tar.gz", "incus_combined.tar.gz"):
        if unified in by_type:
            return _image(product, serial, version, [by_type[unified]], _text(by_type[unified], "sha256"))
    for meta in (by_type[name] for name in ("lxd.tar.xz", "incus.tar.xz") if name in by_type):
        for root in (by_type[name] for name in _ROOTS if name in by_type):
            combined = "squashfs" if root["ftype"] == "squashfs" else "rootxz"
            fingerprint = _text(meta, f"combined_{combined}_sha256")
            if combined == "rootxz":
                fingerprint = fingerprint or _text(meta, "combined_sha256")
            found = _image(product, serial, version, [meta, root], fingerprint)
            if found is not None:
                return found
    return None


def _image(
    product: Record, serial: str, version: Record, items: list[Record], fingerprint: str
) -> StreamImage | None:
    if not _HASH.match(fingerprint):
        return None
    files = []
    for item in items:
        path, sha256, size = _text(item, "path"), _text(item, "sha256"), item.get("size")
        if not is_path(path) or not isinstance(size, int) or (sha256 and not _HASH.match(sha256)):
            return None
        files.append((path, path.rpartition("/")[2], sha256, size))
    date = _SERIAL.match(serial)
    assert date is not None, "only versions with a date are looked at"
    created = "-".join(date.groups()) + "T00:00:00Z"
    record = {
        "fingerprint": fingerprint,
        "filename": files[0][1],
        "properties": _properties(product, serial, version, _text(items[-1], "ftype")),
        "size": sum(size for *_, size in files),
        "created_at": created,
        "uploaded_at": created,
        "last_used_at": _NEVER,
        "expires_at": _expiry(product),
        "public": True,
        "auto_update": False,
        "cached": False,
        "type": "container",
        "profiles": [],
    }
    return StreamImage(record, files)


def _properties(product: Record, serial: str, version: Record, form: str) -> dict[str, str]:
    system, release, label = _text(product, "os"), _text(product, "release"), _text(version, "label")
    named = f"{system} {_text(product, 'release_title') or release} {_text(product, 'arch')}"
    found = {
        "os": system,
        "release": release,
        "version": _text(product, "version"),
        "architecture": _text(product, "arch"),
        "label": label,
        "serial": serial,
        "description": f"{named} ({label}) ({serial})" if label else f"{named} ({serial})",
        "variant": _text(product, "variant"),
        "type": form,
    }
    return {name: value for name, value in found.items() if value}


def _expiry(product: Record) -> str:
    text = _text(product, "support_eol")
    return f"{text}T00:00:00Z" if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text) else _NEVER


def _aliases(product: Record, *, local: bool, omitted: str) -> list[str]:
    architecture = _text(product, "arch")
    names = [name.strip().removeprefix(omitted) for name in _text(product, "aliases").split(",")]
    found: list[str] = []
    for name in names:
        if name and name.isprintable():
            found += [name, f"{name}/{architecture}"] if local else [f"{name}/{architecture}"]
    return found


def newest_first(found: Iterable[StreamImage]) -> list[StreamImage]:
    """Return images in the order of preference where several have an alias: by variant, then by version."""
    listed = sorted(found, key=lambda image: str(image.record["properties"].get("serial")), reverse=True)
    return sorted(listed, key=lambda image: str(image.record["properties"].get("variant", "\U0010ffff")))


def _dict(value: Any) -> Record:
    return value if isinstance(value, dict) else {}


def _text(record: Record, name: str) -> str:
    value = record.get(name)
    return value if isinstance(value, str) else ""
