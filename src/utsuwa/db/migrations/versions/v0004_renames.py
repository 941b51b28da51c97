"""Record the renaming of a volume's files in its row, instead of a file next to them."""

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
