"""Telling the network that a container runs here now."""

from __future__ import annotations

import logging
import sys

from utsuwa.core.errors import ProcessFailed
from utsuwa.host.network import gratuitous
from utsuwa.host.processes.run import run
from utsuwa.instances.model import Running

log = logging.getLogger(__name__)


async def announce(container: Running) -> None:
    """Announce the addresses of a container's interfaces; what fails is logged.

    Without that, bridges send what is for it to the host on which it was, until it sends something itself.
    """
    inside = ["nsenter", f"--net=/proc/{container.init_pid}/ns/net"]
    try:
        await run([*inside, sys.executable, "-S", "-E", "-I", gratuitous.__file__])
    except ProcessFailed as error:
        log.warning("the addresses of instance %r were not announced: %s", container.name, error)
