"""`utsuwa console`: what an instance wrote to its console."""

from __future__ import annotations

from utsuwa.cli.command import Command, Flag
from utsuwa.client.server import path_to
from utsuwa.core.errors import NotSupportedYet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.cli.flags import Flags
    from utsuwa.cli.session import Session


def _run(session: Session, arguments: list[str], flags: Flags) -> None:
    server, name = session.target(arguments[0])
    if not flags.on("show-log"):
        raise NotSupportedYet(
            f"Attaching to a console is not supported in this version: read what it said with "
            f"`utsuwa console {arguments[0]} --show-log`, or get a shell with `utsuwa exec`"
        )
    log = server.checked(server.raw("GET", f"{path_to('instances', name)}/console")).read()
    session.write(f"\nConsole log:\n\n{log.decode('utf-8', 'surrogateescape')}\n")


COMMAND = Command(
    "console",
    "Show instance console logs",
    _run,
    args="[<remote>:]<instance>",
    flags=(Flag("show-log", "Retrieve the instance's console log"),),
    complete=("running",),
    example=("utsuwa console web --show-log", "What its boot wrote."),
)
