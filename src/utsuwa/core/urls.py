"""URLs of objects as `used_by` lists and events name them."""

from __future__ import annotations

from urllib.parse import quote

from utsuwa.core.names import DEFAULT_PROJECT


def object_url(*path: str, project: str = DEFAULT_PROJECT) -> str:
    """`/1.0/` and the path's parts, escaped; the project is named where it is not `default`."""
    suffix = "" if project == DEFAULT_PROJECT else f"?project={quote(project, safe='')}"
    return "/1.0/" + "/".join(quote(part, safe="") for part in path) + suffix
