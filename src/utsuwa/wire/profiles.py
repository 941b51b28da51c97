"""Records of `/1.0/profiles`; fields are named as in JSON."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType


class ProfilePut(msgspec.Struct, kw_only=True):
    """The complete editable part: absent fields become empty."""

    description: str = ""
    config: dict[str, str] = {}
    devices: dict[str, dict[str, str]] = {}


class ProfilePatch(msgspec.Struct, kw_only=True):
    """A part to merge: config by key (an empty value removes one), devices by name."""

    description: str | UnsetType = UNSET
    config: dict[str, str] | UnsetType = UNSET
    devices: dict[str, dict[str, str]] | UnsetType = UNSET


class ProfilesPost(msgspec.Struct, kw_only=True):
    """A new profile."""

    name: str = ""
    description: str = ""
    config: dict[str, str] = {}
    devices: dict[str, dict[str, str]] = {}


class ProfilePost(msgspec.Struct, kw_only=True):
    """A new name."""

    name: str = ""


class Profile(msgspec.Struct, kw_only=True):
    """A profile; `used_by` are URLs of instances."""

    name: str
    description: str
    config: dict[str, str]
    devices: dict[str, dict[str, str]]
    project: str
    used_by: list[str]
