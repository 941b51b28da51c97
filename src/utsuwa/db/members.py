"""Members: the daemons that share the database. Each claims its row when it starts."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from utsuwa.core.errors import HostError
from utsuwa.core.names import check_member_name
from utsuwa.db.schema import instances, members, storage_volumes
from utsuwa.db.transaction import Transaction


@dataclass(frozen=True)
class MemberRow:
    """`uuid` identifies the state directory of its daemon; it is empty until the row is claimed."""

    id: int
    name: str
    uuid: str


def get_all(tx: Transaction) -> list[MemberRow]:
    """Return all members, sorted by name."""
    query = sa.select(members.c.id, members.c.name, members.c.uuid).order_by(members.c.name)
    return [MemberRow(*found) for found in tx.execute(query)]


def claim(tx: Transaction, uuid: str, name: str | None) -> MemberRow:
    """Return the row of the daemon whose state directory has this `uuid`: its own, an unclaimed or a new one.

    If `name` is not None, the member is renamed. Raises InvalidName, or HostError if the member of that name,
    or without a name the only member, belongs to another daemon.
    """
    if name is not None:
        check_member_name(name)
    known = get_all(tx)
    row = _own(tx, known, uuid, name)
    wanted = name or (row.name if row is not None else known[0].name)
    if any(other.name == wanted and other != row for other in known):
        raise HostError(
            f"The member {wanted!r} of the database is a daemon with another state directory: "
            "set a unique name as 'member' in database.yaml"
        )
    values = {"name": wanted, "uuid": uuid}
    if row is None:
        return MemberRow(tx.insert(members, {"description": "", "address": "", **values}), wanted, uuid)
    tx.execute(members.update().where(members.c.id == row.id).values(**values))
    return MemberRow(row.id, wanted, uuid)


def _own(tx: Transaction, known: list[MemberRow], uuid: str, name: str | None) -> MemberRow | None:
    """Return the row to claim; None if a new one is to be inserted."""
    for row in known:
        if row.uuid == uuid:
            return row
    free = next((row for row in known if not row.uuid), None)
    if free is not None and name not in (None, free.name) and _has_anything(tx, free.id):
        raise HostError(
            "The database holds instances of a daemon that has not claimed them yet: start that daemon "
            "first, without a name for its member, and name it after that"
        )
    return free


def _has_anything(tx: Transaction, member_id: int) -> bool:
    return any(
        tx.execute(sa.select(table.c.id).where(table.c.member_id == member_id).limit(1)).all()
        for table in (instances, storage_volumes)
    )
