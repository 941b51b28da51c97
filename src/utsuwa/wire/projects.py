"""Records of `/1.0/projects` as they travel; field names are the JSON's."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType


class ProjectPut(msgspec.Struct, kw_only=True):
    """The whole editable part: what is absent becomes empty."""

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
    """A project as it is shown; `used_by` are URLs of what is in it."""

    name: str
    description: str
    config: dict[str, str]
    used_by: list[str]


class ProjectResource(msgspec.Struct, kw_only=True, rename={"limit": "Limit", "usage": "Usage"}):
    """How much of one thing a project has; a limit of -1 is none."""

    limit: int
    usage: int


class ProjectState(msgspec.Struct, kw_only=True):
    """What a project's instances take: counts, and the sums of the limits that they were given."""

    resources: dict[str, ProjectResource]
