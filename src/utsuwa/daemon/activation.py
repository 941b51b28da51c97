"""`utsuwad activateifneeded`: for hosts where systemd holds the socket and starts the daemon on demand."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path

from utsuwa.core.config_keys import parse_bool
from utsuwa.core.errors import HostError, InvalidName, Unavailable
from utsuwa.core.paths import StatePaths
from utsuwa.daemon import control, membership, state_lock
from utsuwa.db import config as config_rows
from utsuwa.db import instances as instance_rows
from utsuwa.db import networks as network_rows
from utsuwa.db import profiles as profile_rows
from utsuwa.db import storage_volumes as volume_rows
from utsuwa.db.choice import database_settings, engine_for
from utsuwa.db.codes import PENDING, VOLUME_CUSTOM
from utsuwa.db.database import Database
from utsuwa.db.transaction import Transaction
from utsuwa.profiles.expand import expand

_WAKE_SECONDS = 120.0


def reason_to_start(paths: StatePaths) -> str | None:
    """Return why the daemon must run without a request; None if it need not.

    A daemon that runs already on a database of its own has the same reasons, as with LXD.
    """
    if not paths.database.exists() and not paths.database_settings.exists():
        return None
    try:
        if state_lock.holder(paths) is not None:
            return asyncio.run(_reason(paths, running=True))
        with state_lock.state_lock(paths):
            return asyncio.run(_reason(paths, running=False))
    except (HostError, InvalidName, Unavailable):
        return None


async def _reason(paths: StatePaths, *, running: bool) -> str | None:
    """Read the database; beside its daemon it must not be upgraded, nor joined a second time."""
    settings = database_settings(paths)
    engine = engine_for(paths, settings.url)
    if running and (engine.shared or not await asyncio.to_thread(engine.is_prepared)):
        return None
    database = await Database.open(engine)
    try:
        if not running:
            await membership.join(database, paths, settings)
        return await database.read("reason to start", _find_reason)
    finally:
        await database.close()


def _find_reason(tx: Transaction) -> str | None:
    if config_rows.load(tx).get("core.https_address"):
        return "Daemon has core.https_address set"
    profiles = {profile.id: profile for profile in profile_rows.get_all(tx, None)}
    configs = [
        expand([profiles[profile_id] for profile_id in row.data.profile_ids], row.data).config
        for row in instance_rows.get_here(tx)
    ]
    if any(map(_starts, configs)):
        return "Daemon has auto-started instances"
    if any(config.get("snapshots.schedule") for config in configs):
        return "Daemon has scheduled instance snapshots"
    volumes = volume_rows.get_all(tx, None, type=VOLUME_CUSTOM)
    if any(row.here and row.config.get("snapshots.schedule") for row in volumes):
        return "Daemon has scheduled volume snapshots"
    if any(row.state != PENDING for row in network_rows.get_all(tx, None)):
        return "Daemon has managed networks"
    return None


def _starts(config: Mapping[str, str]) -> bool:
    autostart = config.get("boot.autostart", "")
    return parse_bool(autostart) if autostart else config.get("volatile.last_state.power") == "RUNNING"


def wake(socket: Path) -> int:
    """Send a request to the socket, so that systemd starts the daemon; return the exit status.

    The daemon responds once it has found its containers and brought up its networks.
    """
    try:
        control.ask(socket, "GET", "/1.0", _WAKE_SECONDS)
    except OSError as error:
        sys.stderr.write(f"utsuwad: nothing listens on {socket}: {error}\n")
        return 1
    return 0
