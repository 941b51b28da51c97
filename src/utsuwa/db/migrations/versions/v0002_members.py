"""Members: rows of objects on a host refer to the member, and a daemon changes only its own.

Existing rows belong to the first member. The rows of pools and networks are shared by all members; their
state, and the config that differs between hosts, move to tables of members' parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from alembic import op
from alembic.operations import BatchOperations

from utsuwa.db.schema import TEXT

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_FIRST = 1
_POOL_KEYS = ("source", "volatile.initial_source")
_NETWORK_KEYS = ("bridge.external_interfaces",)


def upgrade() -> None:
    _members()
    _rename_references()
    _volumes()
    _images()
    _parts("storage_pools", "storage_pool_id", "storage_pool_member_id", _POOL_KEYS)
    _parts("networks", "network_id", "network_member_id", _NETWORK_KEYS)


def _members() -> None:
    op.rename_table("nodes", "members")
    with _altered("members") as table:
        table.drop_constraint("nodes_name_key", type_="unique")
        # Several members have no address while they do not talk to each other.
        table.drop_constraint("nodes_address_key", type_="unique")
        table.add_column(sa.Column("uuid", TEXT, nullable=False, server_default=""))
        table.create_unique_constraint("members_name_key", ["name"])
        table.create_unique_constraint("members_uuid_key", ["uuid"])
    if _on_postgresql():
        op.execute("ALTER INDEX nodes_pkey RENAME TO members_pkey")
        op.execute("ALTER SEQUENCE nodes_id_seq RENAME TO members_id_seq")


@contextmanager
def _altered(table: str) -> Iterator[BatchOperations]:
    """SQLite recreates the table, whose sequence of ids must not restart."""
    counters = _named("sqlite_sequence", "name", "seq")
    own = counters.c.name == table
    last = None
    if not _on_postgresql():
        last = op.get_bind().execute(sa.select(counters.c.seq).where(own)).scalar_one_or_none()
    with op.batch_alter_table(table, table_kwargs={"sqlite_autoincrement": True}) as batch:
        yield batch
    if last is not None:
        op.execute(counters.delete().where(own))
        op.execute(counters.insert().values(name=table, seq=last))


def _rename_references() -> None:
    op.drop_index("instances_node_id_idx", "instances")
    for table in ("instances", "warnings"):
        op.execute(f"ALTER TABLE {table} RENAME COLUMN node_id TO member_id")
        if _on_postgresql():
            op.execute(
                f"ALTER TABLE {table} RENAME CONSTRAINT {table}_node_id_fkey TO {table}_member_id_fkey"
            )
    op.create_index("instances_member_id_idx", "instances", ["member_id"])


def _volumes() -> None:
    """Volumes of the same name can exist on several members."""
    member = sa.Column("member_id", sa.Integer, nullable=False, server_default=sa.text(str(_FIRST)))
    with _altered("storage_volumes") as table:
        table.add_column(member)
        table.create_foreign_key(
            "storage_volumes_member_id_fkey", "members", ["member_id"], ["id"], ondelete="CASCADE"
        )
        table.drop_constraint("storage_volumes_storage_pool_id_project_id_name_type_key", type_="unique")
        table.create_unique_constraint(
            "storage_volumes_name_key",
            ["storage_pool_id", "member_id", "project_id", "name", "type"],
        )


def _images() -> None:
    _table(
        "images_members",
        _owner("image_id", "images"),
        _owner("member_id", "members"),
        sa.UniqueConstraint("image_id", "member_id"),
    )
    images, having = _named("images", "id"), _named("images_members", "image_id", "member_id")
    found = sa.select(images.c.id, sa.literal(_FIRST)).order_by(images.c.id)
    op.execute(having.insert().from_select(["image_id", "member_id"], found))


def _parts(table: str, column: str, part: str, keys: tuple[str, ...]) -> None:
    """Create the tables of members' parts of `table`; `keys` are member-specific."""
    parts, config = f"{table}_members", f"{table}_members_config"
    _table(
        parts,
        _owner(column, table),
        _owner("member_id", "members"),
        sa.Column("state", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.UniqueConstraint(column, "member_id"),
    )
    _table(
        config,
        _owner(part, parts),
        sa.Column("key", TEXT, nullable=False),
        sa.Column("value", TEXT),
        sa.UniqueConstraint(part, "key"),
    )
    _fill_parts(_named(table, "id", "state"), _named(parts, "id", column, "member_id", "state"), column)
    op.execute(f"ALTER TABLE {table} DROP COLUMN state")
    old, new = _named(f"{table}_config", column, "key", "value"), _named(config, part, "key", "value")
    _move_config(old, new, _named(parts, "id", column), (column, part), keys)


def _fill_parts(owners: sa.TableClause, parts: sa.TableClause, column: str) -> None:
    found = sa.select(owners.c.id, sa.literal(_FIRST), owners.c.state).order_by(owners.c.id)
    op.execute(parts.insert().from_select([column, "member_id", "state"], found))


def _move_config(
    old: sa.TableClause,
    new: sa.TableClause,
    parts: sa.TableClause,
    columns: tuple[str, str],
    keys: tuple[str, ...],
) -> None:
    column, part = columns
    moved = old.c.key.in_(keys)
    found = sa.select(parts.c.id, old.c.key, old.c.value)
    found = found.join_from(old, parts, parts.c[column] == old.c[column]).where(moved)
    op.execute(new.insert().from_select([part, "key", "value"], found))
    op.execute(old.delete().where(moved))


def _named(name: str, *columns: str) -> sa.TableClause:
    return sa.table(name, *[sa.column(column) for column in columns])


def _on_postgresql() -> bool:
    return op.get_context().dialect.name == "postgresql"


def _owner(column: str, table: str) -> sa.Column[int]:
    return sa.Column(column, sa.Integer, sa.ForeignKey(f"{table}.id", ondelete="CASCADE"), nullable=False)


def _table(name: str, *parts: sa.Column[Any] | sa.UniqueConstraint) -> sa.Table:
    number = sa.Column("id", sa.Integer, primary_key=True, autoincrement=True, nullable=False)
    return op.create_table(name, number, *parts, sqlite_autoincrement=True)
