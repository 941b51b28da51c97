"""URLs of objects, as used in `used_by` lists and events."""

from __future__ import annotations

from urllib.parse import quote, unquote

from utsuwa.core.names import DEFAULT_PROJECT


def object_url(*path: str, project: str = DEFAULT_PROJECT) -> str:
    """Return `/1.0/` and the escaped path parts, with `?project=` unless it is `default`."""
    suffix = "" if project == DEFAULT_PROJECT else f"?project={_quoted(project)}"
    return "/1.0/" + "/".join(map(_quoted, path)) + suffix


def _quoted(part: str) -> str:
    # Most names need no escaping, and `quote` takes ten times as long.
    return part if part.isascii() and part.isalnum() else quote(part, safe="")


def project_of(url: str) -> str:
    """The project of the object that a URL of `object_url` names."""
    _, found, project = url.partition("?project=")
    return unquote(project) if found else DEFAULT_PROJECT
