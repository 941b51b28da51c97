"""The first project and profile are described as LXD describes them, which scripts look for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table, kind in (("projects", "project"), ("profiles", "profile")):
        described = sa.table(table, sa.column("name", sa.Text), sa.column("description", sa.Text))
        op.execute(
            described.update()
            .where(described.c.name == "default", described.c.description == f"Default Utsuwa {kind}")
            .values(description=f"Default LXD {kind}")
        )
