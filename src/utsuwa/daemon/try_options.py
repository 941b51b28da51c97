"""The options of `utsuwad try` and of its subcommand."""

from __future__ import annotations

import argparse
from pathlib import Path

from utsuwa.tryit import places


def add_options(site: argparse.ArgumentParser, general: argparse.ArgumentParser) -> None:
    """Add the options and the subcommand of `try`."""
    _add_directory(site)
    site.set_defaults(run=_serve)
    actions = site.add_subparsers(title="actions", metavar="ACTION")
    init = actions.add_parser(
        "init",
        parents=[general],
        help="prepare the running daemon for the site: a restricted project, its profile, a certificate",
    )
    _add_directory(init)
    init.add_argument("--image", default="try", metavar="ALIAS", help="image of the visitors' containers")
    init.add_argument("--project", default="try", metavar="NAME", help="project of these containers")
    init.add_argument("--pool", default="", metavar="NAME", help="storage pool of these containers")
    init.add_argument(
        "--user", default="utsuwa-try", metavar="NAME", help="user that the site runs as; created if missing"
    )
    init.add_argument(
        "--data",
        default="/var/lib/utsuwa-try",
        metavar="D",
        help="directory of feedback and statistics, which is made for that user (default: %(default)s)",
    )
    init.set_defaults(run=_initialize)


def _add_directory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--directory",
        type=Path,
        default=places.FOLDER,
        metavar="D",
        help=f"directory of {places.FILE} and the certificates (default: {places.FOLDER})",
    )


def _serve(options: argparse.Namespace) -> int:
    from utsuwa.daemon import try_command

    return try_command.serve(options)


def _initialize(options: argparse.Namespace) -> int:
    from utsuwa.daemon import try_command

    return try_command.initialize(options)
