"""`utsuwad activateifneeded`: for hosts where systemd holds the socket and starts the daemon on demand."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from utsuwa.core.config_keys import parse_bool
from utsuwa.core.errors import HostError, InvalidName, Unavailable
from utsuwa.core.paths import StatePaths
from utsuwa.daemon import control, membership
from utsuwa.daemon.state_lock import state_lock
from utsuwa.db import config as config_rows
from utsuwa.db import instances as instance_rows
from utsuwa.db import networks as network_rows
from utsuwa.db import profiles as profile_rows
from utsuwa.db.choice import database_settings, engine_for
from utsuwa.db.codes import PENDING
from utsuwa.db.database import Database
from utsuwa.db.transaction import Transaction
from utsuwa.profiles.expand import expand

_WAKE_SECONDS = 120.0


def reason_to_start(paths: StatePaths) -> str | None:
    """Return why the daemon must run without a request; None if it runs already or need not."""
    if not paths.database.exists() and not paths.database_settings.exists():
        return None
    try:
        with state_lock(paths):
            return asyncio.run(_reason(paths))
    except (HostError, InvalidName, Unavailable):
        return None


async def _reason(paths: StatePaths) -> str | None:
    settings = database_settings(paths)
    database = await Database.open(engine_for(paths, settings.url))
    try:
        await membership.join(database, paths, settings)
        return await database.read("reason to start", _find_reason)
    finally:
        await database.close()


def _find_reason(tx: Transaction) -> str | None:
    if config_rows.load(tx).get("core.https_address"):
        return "Daemon has core.https_address set"
    profiles = {profile.id: profile for profile in profile_rows.get_all(tx, None)}
    for row in instance_rows.get_here(tx):
        used = [profiles[profile_id] for profile_id in row.profile_ids]
        config, _ = expand(used, row.config, row.devices)
        autostart = config.get("boot.autostart", "")
        ran = config.get("volatile.last_state.power") == "RUNNING"
        if parse_bool(autostart) if autostart else ran:
            return "Daemon has auto-started instances"
    if any(row.state != PENDING for row in network_rows.get_all(tx, None)):
        return "Daemon has managed networks"
    return None


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
