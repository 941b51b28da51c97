"""A CRIU that is new enough, installed once as by `utsuwad criu install` and kept between runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support import isolation
from tests.support.cache import cached
from tests.support.daemon import Daemon
from utsuwa.host.checkpoint import install

_INSTALL = Path(install.__file__)
_FOLDER = "criu"


def installed() -> Path:
    """Return the folder of CRIU, which comes over the host's network."""

    def fetch(folder: Path) -> None:
        argv = [sys.executable, "-m", "utsuwa.daemon.main", "criu", "install"]
        ended = subprocess.run(
            [*isolation.host_prefix(), *argv],
            env=os.environ | {"UTSUWA_DIR": str(folder), "PYTHONPATH": str(_INSTALL.parents[3])},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd="/",
        )
        assert ended.returncode == 0, ended.stderr.decode(errors="replace")

    return cached("criu", [_INSTALL.read_bytes()], fetch) / _FOLDER


def provide(daemon: Daemon, folder: Path) -> None:
    """Have a daemon use it, as if it had been installed for it."""
    (daemon.dir / _FOLDER).symlink_to(folder)
