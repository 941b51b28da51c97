"""The subcommands of `utsuwad`, each with its options and what it runs.

What they need is imported when they are run: `waitready` and `shutdown` are often run by scripts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from utsuwa.core.errors import HostError
from utsuwa.core.paths import StatePaths
from utsuwa.daemon import try_options
from utsuwa.daemon.init import options as init_options
from utsuwa.version import __version__

Add = Callable[..., argparse.ArgumentParser]
"""Adds the parser of a subcommand: `add(name, help=...)`."""


def add_all(parser: argparse.ArgumentParser, general: argparse.ArgumentParser) -> None:
    """Add all subcommands, which also take the options of `general`."""
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def add(name: str, help: str) -> argparse.ArgumentParser:  # noqa: A002 - as `add_parser` names it
        return commands.add_parser(name, parents=[general], help=help)

    _add_waitready(add)
    _add_shutdown(add)
    _add_init(add)
    _add_check(add)
    _add_criu(add, general)
    _add_sql(add)
    _add_try(add, general)
    _add_activateifneeded(add)
    add("version", help="show the version").set_defaults(run=_version)


def _add_waitready(add: Add) -> None:
    ready = add("waitready", help="wait until the daemon is ready and has autostarted instances")
    _add_timeout(ready)
    ready.add_argument("--api-only", action="store_true", help="do not wait for the autostart of instances")
    ready.set_defaults(run=_wait_ready)


def _add_timeout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--timeout", "-t", metavar="S", type=int, default=0, help="seconds; 0 for no limit")


def _wait_ready(options: argparse.Namespace) -> int:
    from utsuwa.daemon import control

    socket = StatePaths.from_environment().socket
    control.wait_ready(socket, options.timeout, api_only=options.api_only)
    return 0


def _add_shutdown(add: Add) -> None:
    shutdown = add("shutdown", help="stop all instances and the daemon")
    _add_timeout(shutdown)
    shutdown.add_argument("--force", "-f", action="store_true", help="kill the instances at once")
    shutdown.set_defaults(run=_shutdown)


def _shutdown(options: argparse.Namespace) -> int:
    from utsuwa.daemon import control

    paths = StatePaths.from_environment()
    if not control.shutdown(paths, force=options.force, timeout=options.timeout):
        raise HostError(f"The daemon still runs after {options.timeout} s")
    return 0


def _add_init(add: Add) -> None:
    init = add("init", help="set the running daemon up")
    init_options.add_options(init)
    init.set_defaults(run=_init)


def _init(options: argparse.Namespace) -> int:
    from utsuwa.daemon.init import command

    return command.run(options)


def _add_check(add: Add) -> None:
    check = add("check", help="check this host's support for containers")
    check.add_argument("--format", choices=("table", "json"), default="table", help="output format")
    check.add_argument(
        "--before-install",
        action="store_true",
        help="omit what the installation provides: packages, id ranges, raised limits",
    )
    check.add_argument(
        "--raise-limits",
        action="store_true",
        help="instead, raise kernel limits that are too low for many containers, now and at each boot",
    )
    check.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> int:
    from utsuwa.daemon import check

    if options.raise_limits:
        return check.raise_limits()
    return check.run(json_format=options.format == "json", before_install=options.before_install)


def _add_criu(add: Add, general: argparse.ArgumentParser) -> None:
    criu = add("criu", help="provide the program that saves the running state of instances")
    actions = criu.add_subparsers(title="actions", metavar="ACTION", required=True)
    install = actions.add_parser(
        "install",
        parents=[general],
        help="install a newer CRIU, with its libraries, for Utsuwa alone, from Debian's archive",
    )
    install.add_argument(
        "--mirror", metavar="URL", default="", help="mirror of Debian (default: that of apt)"
    )
    install.add_argument(
        "--link", metavar="PATH", type=Path, help="also link the program there, such as /usr/local/sbin/criu"
    )
    install.set_defaults(run=_install_criu)


def _install_criu(options: argparse.Namespace) -> int:
    from utsuwa.host.checkpoint import install

    paths = StatePaths.from_environment()
    print(f"Fetching CRIU into {paths.criu}")
    version = install.install(paths.criu, options.mirror)
    if options.link is not None:
        install.link(paths.criu, options.link)
    print(f"CRIU {version} is installed; `utsuwad check` tells whether it works here")
    return 0


def _add_sql(add: Add) -> None:
    sql = add("sql", help="run SQL on the running daemon's database")
    sql.add_argument("database", choices=("global", "local"), help="both are the same here")
    sql.add_argument("query", help="SQL, or - for standard input, .dump, .schema")
    sql.set_defaults(run=_sql)


def _sql(options: argparse.Namespace) -> int:
    from utsuwa.daemon import sql

    return sql.run(StatePaths.from_environment().socket, options.database, options.query)


def _add_try(add: Add, general: argparse.ArgumentParser) -> None:
    site = add("try", help="serve a public site on which anyone tries Utsuwa in a container of their own")
    try_options.add_options(site, general)


def _add_activateifneeded(add: Add) -> None:
    activate = add("activateifneeded", help="start the daemon if anything needs it to run")
    activate.set_defaults(run=_activate)


def _activate(options: argparse.Namespace) -> int:
    from utsuwa.daemon import activation

    if options.debug:
        print("Looking for a reason to start the daemon", file=sys.stderr)
    reason = activation.reason_to_start(StatePaths.from_environment())
    if reason is None:
        return 0
    if options.debug or options.verbose:
        print(f"{reason}, activating...", file=sys.stderr)
    return activation.wake(StatePaths.from_environment().socket)


def _version(options: argparse.Namespace) -> int:
    print(__version__)
    return 0
