"""Background operations that go on on some member, so that the others can tell where."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from utsuwa.db import rows
from utsuwa.db.schema import members, operations, projects
from utsuwa.db.transaction import Transaction


@dataclass(frozen=True)
class OperationRow:
    """`project` is empty for what is in none; `kind` is the text that clients are shown."""

    uuid: str
    project: str
    kind: str
    created_at: datetime
    location: str = ""
    """The name of the member; it is this one for what is inserted."""


def insert(tx: Transaction, row: OperationRow) -> None:
    """Raises NotFound (project)."""
    values = {
        "member_id": tx.member,
        "project_id": rows.project_id(tx, row.project) if row.project else None,
        "uuid": row.uuid,
        "kind": row.kind,
        "created_at": row.created_at,
    }
    tx.insert(operations, values)


def delete(tx: Transaction, uuid: str) -> None:
    """Does nothing where it is gone."""
    tx.execute(operations.delete().where(operations.c.uuid == uuid))


def delete_here(tx: Transaction) -> None:
    """Forget this member's: those of a daemon that has ended."""
    tx.execute(operations.delete().where(operations.c.member_id == tx.member))


def get_elsewhere(tx: Transaction) -> list[OperationRow]:
    """Those of the other members, oldest first."""
    query = (
        sa.select(
            operations.c.uuid,
            sa.func.coalesce(projects.c.name, ""),
            operations.c.kind,
            operations.c.created_at,
            members.c.name,
        )
        .select_from(
            operations.join(members, members.c.id == operations.c.member_id).outerjoin(
                projects, projects.c.id == operations.c.project_id
            )
        )
        .where(operations.c.member_id != tx.member)
        .order_by(operations.c.created_at, operations.c.id)
    )
    return [OperationRow(*found) for found in tx.execute(query)]
