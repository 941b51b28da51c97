"""`utsuwad`: the daemon, and the subcommands that talk to a running one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from utsuwa.core.errors import UtsuwaError
from utsuwa.core.paths import StatePaths
from utsuwa.daemon import subcommands
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
    subcommands.add_all(parser, general)
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


if __name__ == "__main__":
    sys.exit(main())
