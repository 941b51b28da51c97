"""Indexes for MAC addresses and static addresses, which each launch looks up."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    given = sa.column("key").like(sa.literal_column("'volatile.%.hwaddr'"))
    op.create_index(
        "instances_config_hwaddr_idx",
        "instances_config",
        ["value"],
        sqlite_where=given,
        postgresql_where=given,
    )
    change = sa.column("key") == sa.literal_column("'volatile.last_state.change'")
    op.create_index(
        "instances_config_change_idx",
        "instances_config",
        ["instance_id"],
        sqlite_where=change,
        postgresql_where=change,
    )
    op.create_index("instances_devices_config_key_idx", "instances_devices_config", ["key"])
