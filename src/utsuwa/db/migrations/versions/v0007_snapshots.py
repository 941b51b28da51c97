"""Snapshots of instances have the same data as instances: also architecture, ephemeral flag and profiles.

Their state tells complete ones from those that an interrupted change left behind.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from utsuwa.db.schema import TEXT

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    zero = sa.text("0")
    op.add_column(
        "instances_snapshots", sa.Column("architecture", sa.Integer, nullable=False, server_default=zero)
    )
    op.add_column(
        "instances_snapshots",
        sa.Column("ephemeral", sa.Boolean, nullable=False, server_default=sa.false()),
    )
    op.add_column("instances_snapshots", sa.Column("state", sa.Integer, nullable=False, server_default=zero))
    op.create_index("instances_snapshots_expiry_date_idx", "instances_snapshots", ["expiry_date"])
    op.create_table(
        "instances_snapshots_profiles",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True, nullable=False),
        sa.Column(
            "instance_snapshot_id",
            sa.Integer,
            sa.ForeignKey("instances_snapshots.id", ondelete="CASCADE"),
            nullable=False,
        ),
        sa.Column("profile_id", sa.Integer, sa.ForeignKey("profiles.id", ondelete="SET NULL")),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("apply_order", sa.Integer, nullable=False, server_default=zero),
        sa.UniqueConstraint("instance_snapshot_id", "apply_order"),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "instances_snapshots_profiles_profile_id_idx", "instances_snapshots_profiles", ["profile_id"]
    )
