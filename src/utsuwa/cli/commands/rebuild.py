"""`utsuwa rebuild`: a new root disk for an instance."""

from __future__ import annotations

from utsuwa.cli.errors import UsageError
from utsuwa.cli.parsing.command import Command
from utsuwa.cli.parsing.flags import Flag
from utsuwa.client.server import path_to

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session
    from utsuwa.client.server import Server


def _run(session: Session, arguments: list[str], flags: Flags) -> None:
    if flags.on("empty") == (len(arguments) > 1):
        raise UsageError("Specify either an image or --empty")
    server, name = session.target(arguments[-1])
    source = {"type": "none"}
    if len(arguments) > 1:
        from utsuwa.cli import sources

        source = sources.image(session, arguments[0], server)
    runs = flags.on("force") and server.get(path_to("instances", name))["status"] != "Stopped"
    if runs:
        _change_state(session, server, name, "stop", "Stopping")
    answer = server.post(path_to("instances", name, "rebuild"), {"source": source})
    session.settle(server, answer, f"Rebuilding {name}")
    if runs:
        _change_state(session, server, name, "start", "Starting")


def _change_state(session: Session, server: Server, name: str, action: str, label: str) -> None:
    body = {"action": action, "timeout": -1, "force": action == "stop", "stateful": False}
    session.settle(server, server.put(path_to("instances", name, "state"), body), f"{label} {name}")


COMMAND = Command(
    "rebuild",
    "Rebuild instances",
    _run,
    args="[<remote>:][<image>] [<remote>:]<instance>",
    flags=(
        Flag("empty", "Rebuild as an empty instance"),
        Flag("force", "Stop the instance if it is running, and start it afterwards", "f"),
    ),
    details="Replaces the root disk of a stopped instance; its configuration and snapshots stay.",
    complete=("images", "instances"),
    example=("utsuwa rebuild debian/12 web", "Start over with the files of an image."),
)
