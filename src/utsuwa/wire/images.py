"""Records of `/1.0/images`; fields are named as in JSON."""

from __future__ import annotations

from datetime import datetime

import msgspec
from msgspec import UNSET, UnsetType


class ImageAlias(msgspec.Struct, kw_only=True):
    """An alias, as shown in its image."""

    name: str
    description: str


class ImageSource(msgspec.Struct, kw_only=True):
    """The server, and the alias there, of an image that was downloaded."""

    server: str
    protocol: str
    certificate: str
    alias: str
    image_type: str


class Image(msgspec.Struct, kw_only=True):
    """An image; times are RFC 3339 in UTC, `expires_at` is 1970-01-01 for never."""

    auto_update: bool
    properties: dict[str, str]
    public: bool
    expires_at: str
    profiles: list[str]
    aliases: list[ImageAlias]
    architecture: str
    cached: bool
    filename: str
    fingerprint: str
    size: int
    """Size of its files in bytes."""
    type: str
    created_at: str
    last_used_at: str
    uploaded_at: str
    project: str
    update_source: ImageSource | UnsetType = UNSET
    """Where newer versions come from."""


class ImagePut(msgspec.Struct, kw_only=True):
    """The complete editable part of an image; absent `profiles` are kept."""

    auto_update: bool = False
    properties: dict[str, str] = {}
    public: bool = False
    expires_at: datetime | None = None
    profiles: list[str] | UnsetType = UNSET


class ImagePatch(msgspec.Struct, kw_only=True):
    """A part of an image to merge: properties by name (an empty value removes one), other fields as given."""

    auto_update: bool | UnsetType = UNSET
    properties: dict[str, str] | UnsetType = UNSET
    public: bool | UnsetType = UNSET
    expires_at: datetime | UnsetType = UNSET
    profiles: list[str] | UnsetType = UNSET


class ImagesPostSource(msgspec.Struct, kw_only=True):
    """The source of a new image that is not uploaded."""

    type: str = ""
    """`instance` (or `container`), `snapshot`, `image` or `url`."""
    name: str = ""
    """Of the instance, or `<instance>/<snapshot>`."""
    mode: str = ""
    server: str = ""
    protocol: str = ""
    certificate: str = ""
    alias: str = ""
    fingerprint: str = ""
    secret: str = ""
    project: str = ""
    image_type: str = ""
    url: str = ""


class ImageAliasPost(msgspec.Struct, kw_only=True):
    """An alias that a new image gets."""

    name: str = ""
    description: str = ""


class ImagesPost(msgspec.Struct, kw_only=True):
    """A request for a new image that is not an upload."""

    source: ImagesPostSource = msgspec.field(default_factory=ImagesPostSource)
    filename: str = ""
    auto_update: bool = False
    public: bool = False
    properties: dict[str, str] | UnsetType = UNSET
    """These replace those of the source; absent ones are kept."""
    expires_at: datetime | None = None
    profiles: list[str] = []
    """Empty for the profile `default`."""
    aliases: list[ImageAliasPost] = []
    compression_algorithm: str = ""
    """Empty for what the project or the server has configured."""


class ImageExportPost(msgspec.Struct, kw_only=True):
    """A request to push an image to another server."""

    target: str = ""
    """The URL of that server."""
    certificate: str = ""
    """The server's certificate as PEM; empty for what the system trusts."""
    secret: str = ""
    """What that server expects from who uploads the image."""
    project: str = ""
    """The project there; empty for `default`."""


class ImageAliasesEntry(msgspec.Struct, kw_only=True):
    """An alias; `target` is the image's fingerprint."""

    description: str
    target: str
    name: str
    type: str


class ImageAliasesPost(msgspec.Struct, kw_only=True):
    """A new alias for the image whose fingerprint equals or starts with `target`."""

    name: str = ""
    description: str = ""
    target: str = ""
    type: str = ""


class ImageAliasesEntryPut(msgspec.Struct, kw_only=True):
    """The editable part of an alias."""

    description: str = ""
    target: str = ""


class ImageAliasesEntryPatch(msgspec.Struct, kw_only=True):
    """A part of an alias to change."""

    description: str | UnsetType = UNSET
    target: str | UnsetType = UNSET


class ImageAliasesEntryPost(msgspec.Struct, kw_only=True):
    """A new name for an alias."""

    name: str = ""
