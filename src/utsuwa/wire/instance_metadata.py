"""Records of `/1.0/instances/<name>/metadata`; fields are named as in JSON and in metadata.yaml."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType


class InstanceMetadataTemplate(msgspec.Struct, kw_only=True):
    """A file of the instance that is created from a template."""

    when: list[str] = []
    """Its triggers: create, copy, rename, start."""
    create_only: bool = False
    """Whether an existing file is not overwritten."""
    template: str = ""
    """The name of the template."""
    properties: dict[str, str] = {}
    """Variables of the template."""


class InstanceMetadata(msgspec.Struct, kw_only=True):
    """The metadata of an instance's image; dates are seconds since 1970, 0 for none."""

    architecture: str = ""
    creation_date: int = 0
    expiry_date: int = 0
    properties: dict[str, str] = {}
    templates: dict[str, InstanceMetadataTemplate] = {}
    """By the absolute path of the file in the instance."""


class InstanceMetadataPatch(msgspec.Struct, kw_only=True):
    """A part of the metadata to merge: properties by name and templates by path, other fields as given."""

    architecture: str | UnsetType = UNSET
    creation_date: int | UnsetType = UNSET
    expiry_date: int | UnsetType = UNSET
    properties: dict[str, str] | UnsetType = UNSET
    templates: dict[str, InstanceMetadataTemplate] | UnsetType = UNSET
