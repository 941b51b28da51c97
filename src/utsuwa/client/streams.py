"""The images of an image server (simplestreams), as records of the REST API."""

from __future__ import annotations

from utsuwa.core import simplestreams
from utsuwa.core.errors import InvalidImage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from utsuwa.core.simplestreams import StreamFile, StreamImage

    Record = dict[str, Any]

_NEVER = "1970-01-01T00:00:00Z"


class ListedImage:
    """One image: its record, as `/1.0/images` has it, and its files."""

    def __init__(self, record: Record, files: list[StreamFile]) -> None:
        self.record = record
        self.files = files


def images(document: Any, machine: str, omitted: str = "") -> Iterator[ListedImage]:
    """Yield all images that a document lists, each in its preferred form, without those that are invalid.

    `machine` is the kernel's name of this architecture. Aliases lead to the newest version of a product,
    without the architecture only to that of this machine. `omitted` is a prefix that the server's aliases
    have, and users leave out.
    """
    for product in simplestreams.products(document):
        newest, listed = True, set[str]()
        for image in product:
            if image.serial in listed:
                continue  # another form of it
            try:
                files = image.files()
            except InvalidImage:
                continue
            names = _aliases(image, machine, omitted) if newest else []
            yield ListedImage(_record(image, files, names), files)
            newest = False
            listed.add(image.serial)


def _record(image: StreamImage, files: list[StreamFile], aliases: list[str]) -> Record:
    day = image.serial
    created = f"{day[:4]}-{day[4:6]}-{day[6:8]}T00:00:00Z"
    return {
        "fingerprint": image.fingerprint,
        "filename": image.filename,
        "properties": image.properties,
        "architecture": image.architecture,
        "aliases": [{"name": name, "description": ""} for name in aliases],
        "size": sum(file.size for file in files),
        "created_at": created,
        "uploaded_at": created,
        "last_used_at": _NEVER,
        "expires_at": f"{image.support_end}T00:00:00Z" if image.support_end else _NEVER,
        "public": True,
        "auto_update": False,
        "cached": False,
        "type": "container",
        "profiles": [],
    }


def _aliases(image: StreamImage, machine: str, omitted: str) -> list[str]:
    found: list[str] = []
    for name in image.aliases(omitted):
        full = f"{name}/{image.named_architecture}"
        found += [name, full] if image.architecture == machine else [full]
    return found


def newest_first(found: Iterable[ListedImage]) -> list[ListedImage]:
    """Return images in the order of preference where several have an alias: by variant, then by version."""
    listed = sorted(found, key=lambda image: str(image.record["properties"].get("serial")), reverse=True)
    return sorted(listed, key=lambda image: str(image.record["properties"].get("variant", "\U0010ffff")))
