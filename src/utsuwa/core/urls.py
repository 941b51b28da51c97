"""URLs of objects as `used_by` lists and events name them."""

from __future__ import annotations

from urllib.parse import quote, unquote

from utsuwa.core.names import DEFAULT_PROJECT


def object_url(*path: str, project: str = DEFAULT_PROJECT) -> str:
    """`/1.0/` and the path's parts, escaped; the project is named where it is not `default`."""
    suffix = "" if project == DEFAULT_PROJECT else f"?project={quote(project, safe='')}"
    return "/1.0/" + "/".join(quote(part, safe="") for part in path) + suffix


def project_of(url: str) -> str:
    """The project of the object that a URL of `object_url` names."""
    _, found, project = url.partition("?project=")
    return unquote(project) if found else DEFAULT_PROJECT
