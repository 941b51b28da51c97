"""Which project holds the objects of a kind for a project.

The rule itself is in `db.projects`, for what asks inside a transaction. That a project exists is checked
where a request comes in (`api.application`); one that goes away after that has nothing, or is not found.
"""

from __future__ import annotations

from utsuwa.core.names import DEFAULT_PROJECT
from utsuwa.db import projects
from utsuwa.db.database import Database
from utsuwa.db.projects import Kind


async def effective(database: Database, project: str, kind: Kind) -> str:
    """The project itself, or `default` for what it does not have of its own. Raises NotFound."""
    if project == DEFAULT_PROJECT:
        return project
    return await database.read("project that holds", projects.effective, project, kind)
