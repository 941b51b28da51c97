"""Records of `/1.0/projects`; fields are named as in JSON."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType


class ProjectPut(msgspec.Struct, kw_only=True):
    """The complete editable part: absent fields become empty."""

    description: str = ""
    config: dict[str, str] = {}


class ProjectPatch(msgspec.Struct, kw_only=True):
    """A part to merge: config by key (an empty value removes one)."""

    description: str | UnsetType = UNSET
    config: dict[str, str] | UnsetType = UNSET


class ProjectsPost(msgspec.Struct, kw_only=True):
    """A new project."""

    name: str = ""
    description: str = ""
    config: dict[str, str] = {}


class ProjectPost(msgspec.Struct, kw_only=True):
    """A new name."""

    name: str = ""


class Project(msgspec.Struct, kw_only=True):
    """A project; `used_by` are URLs of the objects in it."""

    name: str
    description: str
    config: dict[str, str]
    used_by: list[str]


class ProjectResource(msgspec.Struct, kw_only=True, rename={"limit": "Limit", "usage": "Usage"}):
    """A project's usage and limit of one resource; -1 means no limit."""

    limit: int
    usage: int


class ProjectState(msgspec.Struct, kw_only=True):
    """Resource usage of a project: numbers of objects, and the sums of its instances' limits."""

    resources: dict[str, ProjectResource]
