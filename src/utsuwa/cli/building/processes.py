"""Programs on this host: apt and dpkg."""

from __future__ import annotations

import os
import signal
import tempfile

from utsuwa.cli.errors import CommandFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


def run(command: tuple[str, ...], log: str, environment: Mapping[str, str] | None = None) -> int:
    """Run a program whose output goes to the end of a file, and return its exit status.

    An interrupt kills it. Raises CommandFailed if it is not installed.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    try:
        child = os.posix_spawnp(
            command[0],
            command,
            {**os.environ, "LC_ALL": "C.UTF-8", **(environment or {})},
            file_actions=(
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, log, flags, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ),
            setsigdef=(signal.SIGPIPE,),
        )
    except FileNotFoundError as error:
        raise CommandFailed(f"{command[0]} is missing: images are built on Debian or Ubuntu") from error
    try:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise


def output(*command: str, environment: Mapping[str, str] | None = None) -> str:
    """Return what a program prints. Raises CommandFailed."""
    with tempfile.NamedTemporaryFile() as log:
        status = run(command, log.name, environment)
        text = log.read().decode("utf-8", "replace")
    if status:
        raise CommandFailed(f"{command[0]} failed with exit status {status}: {text.strip()}")
    return text
