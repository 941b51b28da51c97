"""The daemon process: log, event loop and signals.

SIGTERM and SIGINT stop the daemon, a second one without waiting for operations; SIGPWR stops its containers
too.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import logging
import os
import signal
from pathlib import Path

import uvloop

from utsuwa.core import threads
from utsuwa.core.errors import HostError, UtsuwaError
from utsuwa.core.paths import StatePaths
from utsuwa.daemon import logging as daemon_log
from utsuwa.daemon.app import Daemon
from utsuwa.daemon.passed_socket import take_socket
from utsuwa.daemon.state_lock import state_lock
from utsuwa.db.choice import Settings
from utsuwa.host.system import descriptors, heap
from utsuwa.version import __version__

log = logging.getLogger(__name__)

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING}


def run(
    paths: StatePaths,
    *,
    group: str | None,
    logfile: Path | None,
    level: str,
    database: Settings | None = None,
) -> int:
    """Run the daemon until it is stopped; return the exit status."""
    # Private files are created with explicit modes. liblxc creates directories in a container's /dev with the
    # inherited umask: a strict one would make them usable by root only.
    os.umask(0o022)
    # A crash in native code leaves the Python stacks of all threads in the journal.
    faulthandler.enable()
    heap.keep_small()
    descriptors.keep_inherited()
    descriptors.raise_limit()
    try:
        daemon_log.set_up(level=_LEVELS[level], file=logfile)
    except OSError as error:
        raise HostError(f"Cannot write the log file {logfile}: {error.strerror}") from error
    passed_socket = take_socket(paths.socket)
    try:
        paths.create_directories()
    except OSError as error:
        raise HostError(f"Cannot create the state directory {paths.root}: {error}") from error
    with state_lock(paths):
        log.info("starting", extra={"version": __version__, "folder": paths.root})
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_serve(Daemon(paths, group, passed_socket, database)))
        except UtsuwaError as error:
            log.error("the daemon could not start: %s", error.message)
            return 1
        log.info("ended")
    return 0


async def _serve(daemon: Daemon) -> None:
    threads.start_shared()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, daemon.request_stop)
    loop.add_signal_handler(signal.SIGPWR, lambda: daemon.request_shutdown(force=False, timeout=None))
    loop.add_signal_handler(signal.SIGHUP, lambda: None)
    await daemon.start()
    # Objects created at start-up are permanent; scanning them again would only delay requests.
    gc.collect()
    gc.freeze()
    # A full collection waits until the number of new objects exceeds a quarter of those that survived the
    # last one, which includes all objects of start-up; after this one, hardly any are left.
    gc.collect()
    # A list of thousands of instances makes many objects, but hardly any cycles: looking for those after each
    # 700 objects would take a tenth of its time.
    gc.set_threshold(10_000)
    trimming = asyncio.create_task(heap.keep_trimmed(), name="memory")
    await daemon.serve_until_stopped()
    trimming.cancel()
