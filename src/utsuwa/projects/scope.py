"""The effective project: which project holds the objects of a kind for a given project.

The rule itself is in `db.projects`, for use within transactions. The existence of a project is checked where
a request is received (`api.application`); one that is deleted after that is empty, or not found.
"""

from __future__ import annotations

from utsuwa.core.names import DEFAULT_PROJECT
from utsuwa.db import projects
from utsuwa.db.database import Database
from utsuwa.db.projects import Kind


async def effective(database: Database, project: str, kind: Kind) -> str:
    """Return the project itself, or `default` for kinds of which it has none of its own. Raises NotFound."""
    if project == DEFAULT_PROJECT:
        return project
    return await database.read("project that holds", projects.effective, project, kind)
