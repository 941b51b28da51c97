"""`utsuwad`: the daemon, and the subcommands that talk to a running one.

Imports only what a subcommand needs: `waitready` and `shutdown` are often run by scripts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from utsuwa.core.errors import UtsuwaError
from utsuwa.core.paths import StatePaths
from utsuwa.daemon import try_options
from utsuwa.daemon.init import options as init_options
from utsuwa.version import __version__

LATER = ("recover",)
"""Documented subcommands that are not supported yet."""


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point; returns the exit status."""
    # Scripts pass options that may be empty ("${debug}"), which are ignored.
    arguments = [a for a in (sys.argv[1:] if argv is None else argv) if a]
    if arguments and arguments[0] in LATER:
        return _fail(f"`utsuwad {arguments[0]}` is not supported yet: use the REST API or the lxc client")
    options = make_parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.run
    try:
        return command(options)
    except UtsuwaError as error:
        return _fail(error.message)
    except KeyboardInterrupt:
        return 130


def _fail(message: str) -> int:
    print(f"utsuwad: {message}", file=sys.stderr)
    return 1


def make_parser() -> argparse.ArgumentParser:
    general = argparse.ArgumentParser(add_help=False)
    general.add_argument("--group", metavar="G", default=argparse.SUPPRESS, help="group of the unix socket")
    general.add_argument(
        "--logfile", metavar="F", type=Path, default=argparse.SUPPRESS, help="also log to this file"
    )
    general.add_argument(
        "-v", "--verbose", action="store_true", default=argparse.SUPPRESS, help="log what is done"
    )
    general.add_argument(
        "-d", "--debug", action="store_true", default=argparse.SUPPRESS, help="log every request as well"
    )
    parser = argparse.ArgumentParser(
        prog="utsuwad",
        description="The daemon of Utsuwa. It runs in the foreground unless a command is given.",
        epilog=f"Not supported yet: {', '.join(LATER)}. The state directory is $UTSUWA_DIR.",
        parents=[general],
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument(
        "--database",
        metavar="URL",
        help="PostgreSQL database instead of a file in the state directory: postgresql://USER@HOST/DATABASE; "
        "put a URL with a password into database.yaml in the state directory",
    )
    parser.add_argument(
        "--member",
        metavar="NAME",
        help="name of this daemon among those that share the database; 'member' in database.yaml",
    )
    parser.set_defaults(run=_run, group=None, logfile=None, verbose=False, debug=False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    ready = commands.add_parser(
        "waitready", parents=[general], help="wait until the daemon is ready and has autostarted instances"
    )
    ready.add_argument("--timeout", "-t", metavar="S", type=int, default=0, help="seconds; 0 for no limit")
    ready.add_argument("--api-only", action="store_true", help="do not wait for the autostart of instances")
    ready.set_defaults(run=_wait_ready)

    shutdown = commands.add_parser("shutdown", parents=[general], help="stop all instances and the daemon")
    shutdown.add_argument("--timeout", "-t", metavar="S", type=int, default=0, help="seconds; 0 for no limit")
    shutdown.add_argument("--force", "-f", action="store_true", help="kill the instances at once")
    shutdown.set_defaults(run=_shutdown)

    init = commands.add_parser("init", parents=[general], help="set the running daemon up")
    init_options.add_options(init)
    init.set_defaults(run=_init)

    check = commands.add_parser("check", parents=[general], help="check this host's support for containers")
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

    criu = commands.add_parser(
        "criu", parents=[general], help="provide the program that saves the running state of instances"
    )
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

    sql = commands.add_parser("sql", parents=[general], help="run SQL on the running daemon's database")
    sql.add_argument("database", choices=("global", "local"), help="both are the same here")
    sql.add_argument("query", help="SQL, or - for standard input, .dump, .schema")
    sql.set_defaults(run=_sql)

    site = commands.add_parser(
        "try",
        parents=[general],
        help="serve a public site on which anyone tries Utsuwa in a container of their own",
    )
    try_options.add_options(site, general)

    activate = commands.add_parser(
        "activateifneeded", parents=[general], help="start the daemon if anything needs it to run"
    )
    activate.set_defaults(run=_activate)

    version = commands.add_parser("version", parents=[general], help="show the version")
    version.set_defaults(run=_version)
    return parser


def _run(options: argparse.Namespace) -> int:
    from utsuwa.daemon import process
    from utsuwa.db.choice import Settings

    return process.run(
        StatePaths.from_environment(),
        group=options.group,
        logfile=options.logfile,
        level="debug" if options.debug else "info" if options.verbose else "warning",
        database=Settings(options.database, options.member),
    )


def _wait_ready(options: argparse.Namespace) -> int:
    from utsuwa.daemon import control

    socket = StatePaths.from_environment().socket
    control.wait_ready(socket, options.timeout, api_only=options.api_only)
    return 0


def _shutdown(options: argparse.Namespace) -> int:
    from utsuwa.daemon import control

    paths = StatePaths.from_environment()
    if control.shutdown(paths, force=options.force, timeout=options.timeout):
        return 0
    return _fail(f"The daemon still runs after {options.timeout} s")


def _init(options: argparse.Namespace) -> int:
    from utsuwa.daemon.init import command

    return command.run(options)


def _check(options: argparse.Namespace) -> int:
    from utsuwa.daemon import check

    if options.raise_limits:
        return check.raise_limits()
    return check.run(json_format=options.format == "json", before_install=options.before_install)


def _install_criu(options: argparse.Namespace) -> int:
    from utsuwa.host.checkpoint import install

    paths = StatePaths.from_environment()
    print(f"Fetching CRIU into {paths.criu}")
    version = install.install(paths.criu, options.mirror)
    if options.link is not None:
        install.link(paths.criu, options.link)
    print(f"CRIU {version} is installed; `utsuwad check` tells whether it works here")
    return 0


def _sql(options: argparse.Namespace) -> int:
    from utsuwa.daemon import sql

    return sql.run(StatePaths.from_environment().socket, options.database, options.query)


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


if __name__ == "__main__":
    sys.exit(main())
