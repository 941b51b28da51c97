"""`utsuwa rename`."""

from __future__ import annotations

from utsuwa.cli.errors import UsageError
from utsuwa.cli.parsing.command import Command
from utsuwa.client.server import path_to

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session


def _run(session: Session, arguments: list[str], _flags: Flags) -> int:
    server, name = session.target(arguments[0])
    new_remote, new_name = session.config.split(arguments[1])
    if ":" in arguments[1] and session.server(new_remote) is not server:
        raise UsageError("Can't specify a different remote for rename")
    session.wait(server, server.post(path_to("instances", name), {"name": new_name}))
    return 0


COMMAND = Command(
    "rename",
    "Rename instances",
    _run,
    args="[<remote>:]<instance> <new-name>",
    example=("utsuwa rename web shop", "Rename a stopped instance."),
    complete=("instances", ()),
)
