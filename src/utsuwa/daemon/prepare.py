"""What a first start or a new version needs once, done by a program that ends.

What that loads (Alembic, cryptography) takes a fifth of the daemon's memory, and would stay.
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

# The module path is handed on: a launcher may have put it together itself.
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from utsuwa.daemon.prepare import main; main(sys.argv[2], int(sys.argv[3]))"
)
_SECONDS = 60
_URL = "UTSUWA_DATABASE_URL"


async def prepare(paths: StatePaths, engine: Engine, url: str | None) -> None:
    """Make what is missing of database and key pair. Whoever opens these does what this could not do, and
    tells why it cannot be done: so a failure here is none.
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
        # Not as an argument, which everybody on the host can read.
        await run(argv, timeout=_SECONDS, env={_URL: url})
    except ProcessFailed as error:
        log.info("preparing the state folder in a program of its own failed: %s", error)


def _is_needed(paths: StatePaths, engine: Engine) -> bool:
    return not paths.server_cert.exists() or not engine.is_prepared()


def main(root: str, daemon: int) -> None:
    from utsuwa.security.keypair import ensure_key_pair

    # It works under the daemon's lock, so it must not outlive it.
    set_death_signal(signal.SIGKILL)
    if os.getppid() != daemon:
        return
    paths = StatePaths(Path(root))
    engine_for(paths, os.environ.get(_URL)).prepare()
    ensure_key_pair(paths)
