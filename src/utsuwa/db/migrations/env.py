"""The environment for Alembic: runs the migrations in one transaction, on the connection of `db.upgrade`."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from utsuwa.db.schema import metadata


def run() -> None:
    connection: Connection = context.config.attributes["connection"]
    context.configure(
        connection=connection,
        target_metadata=metadata,
        transactional_ddl=True,
        transaction_per_migration=False,
        render_as_batch=True,
    )
    with context.begin_transaction():
        context.run_migrations()


run()
