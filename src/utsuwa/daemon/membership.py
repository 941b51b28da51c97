"""Which member of its database this daemon is."""

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
"""Seconds that a daemon before this one, which was killed, gets to be noticed by the server."""


async def join(database: Database, paths: StatePaths, settings: Settings) -> None:
    """Have the database work as the member that this state folder belongs to.

    Raises HostError or InvalidName where its name does not do, or the member is another daemon's.
    """
    # In a database of its own the only member is the daemon's, also where the file comes from a backup.
    identity = await asyncio.to_thread(_identity, paths) if database.engine.shared else ""
    database.act_as(await database.write("join as a member", members.claim, identity, settings.member))
    if not await database.keep_member(_PATIENCE):
        raise HostError(
            f"Another daemon works as the member {database.member.name!r} already: where this state folder "
            f"is a copy of that one's, remove {paths.member} from it and give it a 'member' in database.yaml"
        )


def _identity(paths: StatePaths) -> str:
    """The id of the state folder, made at the first start. Blocking."""
    try:
        return str(uuid.UUID(paths.member.read_text().strip()))
    except FileNotFoundError:
        return _new_identity(paths)
    except (OSError, ValueError) as error:
        raise HostError(f"Cannot read the id of this member from {paths.member}: {error}") from error


def _new_identity(paths: StatePaths) -> str:
    """On the disk before the database knows it: a daemon that lost it could not claim its own instances."""
    identity = str(uuid.uuid4())
    replace_file(paths.member, f"{identity}\n")
    for path, flags in ((paths.member, os.O_RDONLY), (paths.member.parent, os.O_RDONLY | os.O_DIRECTORY)):
        descriptor = os.open(path, flags | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return identity
