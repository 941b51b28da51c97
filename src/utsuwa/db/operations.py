"""Running background operations and their members, so that other members can find them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from utsuwa.db import rows
from utsuwa.db.schema import members, operations, projects
from utsuwa.db.transaction import Transaction


@dataclass(frozen=True)
class OperationRow:
    """`project` is empty for operations without one; `kind` is the description shown to clients."""

    uuid: str
    project: str
    kind: str
    created_at: datetime
    location: str = ""
    """The name of the member; ignored by `insert`, which uses this member."""


def insert(tx: Transaction, row: OperationRow) -> None:
    """Insert an operation of this member. Raises NotFound (project)."""
    values = {
        "member_id": tx.member,
        "project_id": rows.project_id(tx, row.project) if row.project else None,
        "uuid": row.uuid,
        "kind": row.kind,
        "created_at": row.created_at,
    }
    tx.insert(operations, values)


def delete(tx: Transaction, uuid: str) -> None:
    """Delete an operation, if it exists."""
    tx.execute(operations.delete().where(operations.c.uuid == uuid))


def delete_here(tx: Transaction) -> None:
    """Delete this member's operations, left by a daemon that has ended."""
    tx.execute(operations.delete().where(operations.c.member_id == tx.member))


def get_elsewhere(tx: Transaction) -> list[OperationRow]:
    """Return the operations of other members, oldest first."""
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
