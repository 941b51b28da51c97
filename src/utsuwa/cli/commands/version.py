"""`utsuwa version`."""

from __future__ import annotations

from utsuwa._version import __version__
from utsuwa.cli.parsing.command import Command
from utsuwa.core.errors import UtsuwaError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session


def _run(session: Session, arguments: list[str], _flags: Flags) -> None:
    server, _ = session.takes_remote(arguments)
    try:
        found = server.get("/1.0")["environment"]["server_version"]
    except UtsuwaError:
        found = "unreachable"
    session.write(f"Client version: {__version__}\nServer version: {found}\n")


COMMAND = Command(
    "version",
    "Show local and remote versions",
    _run,
    args="[<remote>:]",
    example=("utsuwa version", "Show the versions of this client and of the default remote."),
)
