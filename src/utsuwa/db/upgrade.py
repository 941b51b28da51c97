"""Schema upgrades: the migrations to this version's tables, the same for every engine.

Alembic is imported only if there is something to do, because its import takes a good part of a start.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from utsuwa.core.errors import HostError

REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008", "0009")
"""All revisions in order, the newest last; a test compares them with `migrations/versions`."""

_MIGRATIONS = Path(__file__).parent / "migrations"


def is_behind(stored: str | None, name: str) -> bool:
    """Return whether a database at revision `stored` (None: without tables) needs migrations.

    Raises HostError if it belongs to a newer version; `name` is the database's name in the message.
    """
    if stored is not None and stored not in REVISIONS:
        raise HostError(
            f"{name} was written by a newer version of Utsuwa (schema {stored}, this one "
            f"knows {REVISIONS[-1]}): start that version again, or restore a copy made before the upgrade"
        )
    return stored != REVISIONS[-1]


def run_steps(connection: sa.Connection) -> None:
    """Run the missing migrations in the connection's transaction, which the caller commits."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, REVISIONS[-1])
