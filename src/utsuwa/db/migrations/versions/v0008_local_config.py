"""Set listen addresses and other local keys of the server config for each member.

Every existing member keeps the value that was shared by all.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from utsuwa.db.schema import TEXT

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_LOCAL_KEYS = (
    "cluster.https_address",
    "core.bgp_address",
    "core.bgp_routerid",
    "core.debug_address",
    "core.dns_address",
    "core.https_address",
    "core.metrics_address",
    "core.storage_buckets_address",
    "core.syslog_socket",
    "storage.backups_volume",
    "storage.images_volume",
    "storage.logs_volume",
)


def upgrade() -> None:
    old = sa.table("config_old", sa.column("key", TEXT), sa.column("value", TEXT))
    members = sa.table("members", sa.column("id", sa.Integer))
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE config RENAME CONSTRAINT config_pkey TO config_old_pkey")
        op.execute("ALTER TABLE config RENAME CONSTRAINT config_key_key TO config_old_key_key")
        op.execute("ALTER SEQUENCE config_id_seq RENAME TO config_old_id_seq")
    op.rename_table("config", "config_old")
    new = op.create_table(
        "config",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True, nullable=False),
        sa.Column("member_id", sa.Integer, sa.ForeignKey("members.id", ondelete="CASCADE")),
        sa.Column("key", TEXT, nullable=False),
        sa.Column("value", TEXT),
        sa.UniqueConstraint("member_id", "key"),
        sqlite_autoincrement=True,
    )
    shared = sa.column("member_id").is_(None)
    op.create_index(
        "config_shared_key_idx", "config", ["key"], unique=True, sqlite_where=shared, postgresql_where=shared
    )
    columns = ["member_id", "key", "value"]
    is_local = old.c.key.in_(_LOCAL_KEYS)
    found = sa.select(sa.null(), old.c.key, old.c.value).where(~is_local)
    op.execute(new.insert().from_select(columns, found))
    found = sa.select(members.c.id, old.c.key, old.c.value).select_from(old.join(members, sa.true()))
    found = found.where(is_local)
    op.execute(new.insert().from_select(columns, found))
    op.drop_table("config_old")
