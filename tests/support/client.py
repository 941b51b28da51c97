"""The client `utsuwa`, started as by the installed launcher, on a daemon of the tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import utsuwa
from tests.support.daemon import Daemon

# As the launcher: no site, the paths of the interpreter that runs the tests.
_SOURCE = str(Path(utsuwa.__file__).parents[1])
_PATHS = [_SOURCE, *(path for path in sys.path if path.endswith("site-packages"))]
LAUNCHER = f"import sys; sys.path[:0] = {_PATHS!r}; from utsuwa.cli.main import program; program()"


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", LAUNCHER, *arguments]


def environment(daemon: Daemon, conf: str = "u") -> dict[str, str]:
    """Return the environment with the daemon as `local` and a separate configuration directory."""
    return daemon.lxc_environment() | {
        "UTSUWA_DIR": str(daemon.dir),
        "UTSUWA_CONF": str(daemon.home / conf),
        "TZ": "UTC",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def utsuwa_client(
    daemon: Daemon,
    *arguments: str,
    input: bytes | None = None,
    check: bool = True,
    conf: str = "u",
    env: dict[str, str] | None = None,
    timeout: float = 60,
) -> subprocess.CompletedProcess[str]:
    """Run `utsuwa` with text output."""
    ended = subprocess.run(
        command(*arguments),
        env=environment(daemon, conf) | (env or {}),
        input=input,
        stdin=subprocess.DEVNULL if input is None else None,
        capture_output=True,
        timeout=timeout,
        check=False,
        cwd=os.sep,
    )
    done = subprocess.CompletedProcess(
        ended.args,
        ended.returncode,
        ended.stdout.decode(errors="surrogateescape"),
        ended.stderr.decode(errors="surrogateescape"),
    )
    if check:
        assert done.returncode == 0, (
            f"utsuwa {' '.join(arguments)} ended with {done.returncode}\n"
            f"{done.stdout}{done.stderr}\n--- daemon log\n{daemon.log_tail()}"
        )
    return done
