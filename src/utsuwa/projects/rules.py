"""The check of everything in a project against its limits and restrictions."""

from __future__ import annotations

from collections.abc import Iterable

from utsuwa.db.transaction import Transaction
from utsuwa.projects import limits, restrictions


def check(tx: Transaction, project: str) -> None:
    """Raise Forbidden if something in a project violates its restrictions or its limits.

    Raises NotFound.
    """
    wanted = restrictions.get(tx, project)
    if wanted.config is not None:
        restrictions.check_all(tx, wanted)
    limits.check(tx, project)


def check_all(tx: Transaction, projects: Iterable[str]) -> None:
    """`check` several projects."""
    for project in sorted(set(projects)):
        check(tx, project)
