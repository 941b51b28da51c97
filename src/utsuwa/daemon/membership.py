"""The daemon's membership in its database."""

from __future__ import annotations

import asyncio
import os
import uuid

from utsuwa.core.errors import HostError
from utsuwa.core.paths import StatePaths
from utsuwa.db import members
from utsuwa.db.choice import Settings
from utsuwa.db.database import Database
from utsuwa.host.files.atomic import replace_file

_PATIENCE = 10.0
"""Seconds to wait until the database server notices that a previous daemon was killed."""


async def join(database: Database, paths: StatePaths, settings: Settings) -> None:
    """Make the database act as the member of this state directory.

    Raises HostError or InvalidName if its name is invalid or taken, or the member is already in use.
    """
    # In its own database, the only member is this daemon, even if the file is from a backup.
    identity = await asyncio.to_thread(_identity, paths) if database.engine.shared else ""
    database.act_as(await database.write("join as a member", members.claim, identity, settings.member))
    if not await database.keep_member(_PATIENCE):
        raise HostError(
            f"Another daemon is running as the member {database.member.name!r}: if this state directory is "
            f"a copy of that one's, remove {paths.member} from it and set another 'member' in database.yaml"
        )


def _identity(paths: StatePaths) -> str:
    """Return the id of the state directory, generated at the first start. Blocking."""
    try:
        return str(uuid.UUID(paths.member.read_text().strip()))
    except FileNotFoundError:
        return _new_identity(paths)
    except (OSError, ValueError) as error:
        raise HostError(f"Cannot read the id of this member from {paths.member}: {error}") from error


def _new_identity(paths: StatePaths) -> str:
    """Sync the id to disk before storing it in the database: a daemon needs it to claim its instances."""
    identity = str(uuid.uuid4())
    replace_file(paths.member, f"{identity}\n")
    for path, flags in ((paths.member, os.O_RDONLY), (paths.member.parent, os.O_RDONLY | os.O_DIRECTORY)):
        descriptor = os.open(path, flags | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return identity
