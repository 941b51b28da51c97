"""The renaming of a volume's files is noted in its row before they move, no more in a file beside them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from utsuwa.db.schema import TEXT

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("storage_volumes", sa.Column("new_name", TEXT, nullable=False, server_default=""))
