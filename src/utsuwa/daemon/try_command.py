"""What `utsuwad try` and `utsuwad try init` do."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import pwd
import sys

from utsuwa.core.errors import HostError, ProcessFailed
from utsuwa.daemon.logging import LineFormatter
from utsuwa.host.processes.run import run as run_program
from utsuwa.tryit import process, setup
from utsuwa.tryit import settings as settings_file
from utsuwa.tryit.places import FILE


def serve(options: argparse.Namespace) -> int:
    """Serve the site until it is stopped. Raises UtsuwaError."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter())
    level = logging.DEBUG if options.debug else logging.INFO if options.verbose else logging.WARNING
    logging.basicConfig(level=level, handlers=[handler])
    process.run(options.directory)
    return 0


def initialize(options: argparse.Namespace) -> int:
    """Set the site up, and say what was done. Raises UtsuwaError."""
    wanted = setup.Request(
        folder=options.directory,
        image=options.image,
        project=options.project,
        pool=options.pool,
        user=options.user,
        data=options.data,
    )
    done = setup.set_up(wanted)
    settings = settings_file.load(options.directory)
    done.append(_ensure_user(settings.user))
    if os.geteuid() == 0:
        process.make_data(settings)
        done.append(f"Its data is in {settings.data}")
    sys.stdout.write("\n".join([*done, "`utsuwad try` serves the site", ""]))
    return 0


def _ensure_user(name: str) -> str:
    """Return what to say. Raises HostError."""
    try:
        pwd.getpwnam(name)
    except KeyError:
        nobody = (
            "--system",
            "--no-create-home",
            "--home-dir",
            "/nonexistent",
            "--shell",
            "/usr/sbin/nologin",
        )
        try:
            asyncio.run(run_program(["useradd", *nobody, "--user-group", name]))
        except ProcessFailed as error:
            raise HostError(
                f"The user {name!r} is missing, and cannot be created: {error.message}: create it, or set"
                f" another one as `user` in {FILE}, and run this again"
            ) from error
    return f"The site runs as the user {name}"
