"""Index generated MAC addresses in lower case, as they are compared."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    given = sa.column("key").like(sa.literal_column("'volatile.%.hwaddr'"))
    op.drop_index("instances_config_hwaddr_idx", "instances_config")
    op.create_index(
        "instances_config_hwaddr_idx",
        "instances_config",
        [sa.text("lower(value)")],
        sqlite_where=given,
        postgresql_where=given,
    )
