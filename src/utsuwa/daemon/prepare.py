"""One-time preparations of a first start or a new version, in a separate process.

The modules needed (Alembic, cryptography) would permanently add a fifth to the daemon's memory.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from pathlib import Path

from utsuwa.core.errors import ProcessFailed
from utsuwa.core.paths import StatePaths
from utsuwa.db.choice import engine_for
from utsuwa.db.engine import Engine
from utsuwa.host.helper.kernel import set_death_signal
from utsuwa.host.processes.run import run

log = logging.getLogger(__name__)

# The module path is passed on, as a launcher may have changed it.
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from utsuwa.daemon.prepare import main; main(sys.argv[2], int(sys.argv[3]))"
)
_SECONDS = 60
_URL = "UTSUWA_DATABASE_URL"


async def prepare(paths: StatePaths, engine: Engine, url: str | None) -> None:
    """Create the database and the key pair if missing. Failures are ignored: opening them later tries again,
    and reports errors.
    """
    if not await asyncio.to_thread(_is_needed, paths, engine):
        return
    argv = [
        sys.executable,
        "-I",
        "-S",
        "-c",
        _PROGRAM,
        json.dumps(sys.path),
        str(paths.root),
        str(os.getpid()),
    ]
    try:
        # Not as an argument, which all users of the host can read.
        await run(argv, timeout=_SECONDS, env={_URL: url})
    except ProcessFailed as error:
        log.info("preparing the state directory in a separate process failed: %s", error)


def _is_needed(paths: StatePaths, engine: Engine) -> bool:
    return not paths.server_cert.exists() or not engine.is_prepared()


def main(root: str, daemon: int) -> None:
    from utsuwa.security.keypair import ensure_key_pair

    # It relies on the daemon's lock, so it must not outlive the daemon.
    set_death_signal(signal.SIGKILL)
    if os.getppid() != daemon:
        return
    paths = StatePaths(Path(root))
    engine_for(paths, os.environ.get(_URL)).prepare()
    ensure_key_pair(paths)
