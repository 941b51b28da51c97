"""`utsuwa rename`, for instances and snapshots."""

from __future__ import annotations

from utsuwa.cli.errors import UsageError
from utsuwa.cli.parsing.command import Command
from utsuwa.client.server import instance_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session


def _run(session: Session, arguments: list[str], _flags: Flags) -> int:
    server, name = session.target(arguments[0])
    new_remote, new_name = session.config.split(arguments[1])
    if ":" in arguments[1] and session.server(new_remote) is not server:
        raise UsageError("Can't specify a different remote for rename")
    instance, slash, _ = name.partition("/")
    if slash and "/" in new_name:
        owner, _, new_name = new_name.partition("/")
        if owner != instance:
            raise UsageError("A snapshot stays with its instance: only its name can be changed")
    session.wait(server, server.post(instance_path(name), {"name": new_name}))
    return 0


COMMAND = Command(
    "rename",
    "Rename instances and snapshots",
    _run,
    args="[<remote>:]<instance>[/<snapshot>] <new-name>",
    example=("utsuwa rename web shop", "Rename a stopped instance."),
    complete=("instances-and-snapshots", ()),
)
