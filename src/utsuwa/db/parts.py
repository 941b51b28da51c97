"""Members' parts of pools and networks: the state on the member's host, and member-specific config keys.

The object's row is shared by all members; it is inserted with the first part and deleted with the last one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import sqlalchemy as sa

from utsuwa.db import codes, rows
from utsuwa.db.schema import members
from utsuwa.db.transaction import Prepared, Transaction


class PartTables(NamedTuple):
    """The tables for the parts of one type of object; `keys` are its member-specific config keys."""

    owners: sa.Table
    owners_config: sa.Table
    parts: sa.Table
    parts_config: sa.Table
    owner: str
    """The column of the object's id."""
    part: str
    """The column of the part's id."""
    keys: frozenset[str]


@dataclass
class Parts:
    """The parts of one object: the members that have one, this member's state, and the merged config."""

    locations: tuple[str, ...] = ()
    state: int | None = None
    config: dict[str, str] = field(default_factory=dict)

    def state_word(self, reader: codes.Reader) -> codes.State:
        """Return the state on this member; `codes.PENDING` if only others have a part."""
        if self.state is None:
            return codes.PENDING if reader.complete else codes.UNKNOWN
        return reader.state(self.state)


class PartQueries:
    """Queries for the parts and config of the objects whose ids `owners` selects."""

    def __init__(self, tables: PartTables, owners: rows.Owners) -> None:
        parts, config = tables.parts, tables.parts_config
        of_owners = parts.c[tables.owner].in_(owners)
        self._places = Prepared(
            sa.select(parts.c[tables.owner], parts.c.member_id, members.c.name, parts.c.state)
            .join(members, members.c.id == parts.c.member_id)
            .where(of_owners)
            .order_by(parts.c[tables.owner], members.c.name)
        )
        self._common = Prepared(rows.config_query(tables.owners_config, tables.owner, owners))
        self._own = Prepared(
            sa.select(parts.c[tables.owner], rows.json_config(config))
            .join(config, config.c[tables.part] == parts.c.id)
            .where(of_owners, parts.c.member_id == sa.bindparam("member", type_=sa.Integer))
            .group_by(parts.c[tables.owner])
        )

    def fetch(self, tx: Transaction, **values: str) -> Mapping[int, Parts]:
        """Return the parts by the object's id, in three queries."""
        found: dict[int, Parts] = {}
        for owner_id, member, name, state in tx.fetch(self._places, **values):
            parts = found.setdefault(owner_id, Parts())
            parts.locations = (*parts.locations, name)
            if member == tx.member:
                parts.state = state
        _merge(found, tx.fetch(self._common, **values))
        _merge(found, tx.fetch(self._own, member=tx.member, **values))
        return {
            owner_id: Parts(parts.locations, parts.state, dict(sorted(parts.config.items())))
            for owner_id, parts in found.items()
        }


def _merge(found: Mapping[int, Parts], configs: Iterable[tuple[int, str]]) -> None:
    for owner_id, config in rows.configs(configs).items():
        found[owner_id].config.update(config)


def insert(
    tx: Transaction, tables: PartTables, owner_id: int, state: codes.State, config: Mapping[str, str]
) -> None:
    """Insert this member's part of an existing object. Raises IntegrityError if it has one."""
    values = {tables.owner: owner_id, "member_id": tx.member, "state": codes.STATES[state]}
    part_id = tx.insert(tables.parts, values)
    own = {key: value for key, value in config.items() if key in tables.keys}
    rows.insert_config(tx, tables.parts_config, tables.part, part_id, own)


def insert_common(tx: Transaction, tables: PartTables, owner_id: int, config: Mapping[str, str]) -> None:
    """Insert the config keys of a new object that all members share."""
    common = {key: value for key, value in config.items() if key not in tables.keys}
    rows.insert_config(tx, tables.owners_config, tables.owner, owner_id, common)


def replace_config(tx: Transaction, tables: PartTables, owner_id: int, config: Mapping[str, str]) -> None:
    """Replace the member-specific and the shared config keys of an object that this member has."""
    tx.execute(tables.owners_config.delete().where(tables.owners_config.c[tables.owner] == owner_id))
    insert_common(tx, tables, owner_id, config)
    part_id = tx.execute(sa.select(tables.parts.c.id).where(_own(tx, tables, owner_id))).scalar_one()
    own = {key: value for key, value in config.items() if key in tables.keys}
    rows.replace_config(tx, tables.parts_config, tables.part, part_id, own)


def set_state(tx: Transaction, tables: PartTables, owner_id: int, state: codes.State, not_found: str) -> None:
    """Set the state on this member. Raises NotFound(not_found) if it has no part."""
    statement = tables.parts.update().where(_own(tx, tables, owner_id)).values(state=codes.STATES[state])
    rows.one_changed(tx.execute(statement), not_found)


def delete(tx: Transaction, tables: PartTables, owner_id: int) -> None:
    """Delete this member's part, if it exists, and the object with the last part."""
    tx.execute(tables.parts.delete().where(_own(tx, tables, owner_id)))
    rest = sa.select(tables.parts.c.id).where(tables.parts.c[tables.owner] == owner_id).limit(1)
    if not tx.execute(rest).all():
        tx.execute(tables.owners.delete().where(tables.owners.c.id == owner_id))


def _own(tx: Transaction, tables: PartTables, owner_id: int) -> sa.ColumnElement[bool]:
    return sa.and_(tables.parts.c[tables.owner] == owner_id, tables.parts.c.member_id == tx.member)
