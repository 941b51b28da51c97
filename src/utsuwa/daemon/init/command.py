"""The `init` subcommand."""

from __future__ import annotations

import argparse
import sys

from utsuwa.core.errors import InvalidRequest
from utsuwa.core.paths import StatePaths
from utsuwa.daemon.init import interactive, plan, preseed
from utsuwa.daemon.init.apply import apply
from utsuwa.daemon.init.dump import dump
from utsuwa.daemon.init.options import Options, from_arguments
from utsuwa.daemon.init.preseed import Preseed
from utsuwa.daemon.init.state import ServerState
from utsuwa.daemon.local_api import LocalApi


def run(arguments: argparse.Namespace) -> int:
    """Run `init` and return the exit status. Raises UtsuwaError, having changed nothing."""
    options = from_arguments(arguments)
    paths = StatePaths.from_environment()
    api = LocalApi(paths.socket)
    if options.dump:
        sys.stdout.write(dump(api, paths.storage_pools))
        return 0
    apply(api, _wanted(options, api))
    return 0


def _wanted(options: Options, api: LocalApi) -> Preseed:
    if options.preseed:
        return preseed.parse(_standard_input())
    state = ServerState.of(api)
    if options.auto or options.minimal:
        return plan.automatic(options, state)
    return interactive.converse(interactive.StandardTerminal(), state)


def _standard_input() -> str:
    data = sys.stdin.buffer.read(preseed.MAX_SIZE + 1)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"The preseed is not UTF-8 text: {error}") from error
