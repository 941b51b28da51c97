"""`utsuwa console`: attach to the console of an instance, or show its log."""

from __future__ import annotations

from utsuwa.cli.errors import UsageError
from utsuwa.cli.parsing.command import Command
from utsuwa.cli.parsing.flags import TEXT, Flag
from utsuwa.client.server import path_to

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session
    from utsuwa.client.server import Server


def _run(session: Session, arguments: list[str], flags: Flags) -> None:
    server, name = session.target(arguments[0])
    if not name:
        raise UsageError("Specify an instance")
    url = path_to("instances", name, "console")
    if flags.on("show-log"):
        if flags.given("type") and flags.text("type") != "console":
            raise UsageError("The --show-log flag is only supported for the type console")
        log = server.checked(server.raw("GET", url)).read()
        session.write(f"\nConsole log:\n\n{log.decode('utf-8', 'surrogateescape')}\n")
        return
    attach(session, server, name, flags.text("type"), force=flags.on("force"))


def attach(session: Session, server: Server, name: str, kind: str, *, force: bool = False) -> None:
    """Connect the terminal to an instance's console until either end closes it. Raises ApiError."""
    from utsuwa.cli import streams

    body = {"type": kind, "force": force, **streams.window()}
    operation = server.post(path_to("instances", name, "console"), body)
    session.say("To detach from the console, press: <ctrl>+a q")
    streams.attend(server, operation, (0, 1, 2))
    server.wait(operation)


COMMAND = Command(
    "console",
    "Attach to instance consoles",
    _run,
    args="[<remote>:]<instance>",
    flags=(
        Flag("force", "Take over the console from another session"),
        Flag("show-log", "Retrieve the instance's console log"),
        Flag("type", "Type of connection to establish (console)", "t", kind=TEXT, default="console"),
    ),
    details="""\
Press Ctrl+a q to detach, Ctrl+a twice to send it once. Only one session at a time can use a console.""",
    complete=("running",),
    example=("utsuwa console web --show-log", "Show the messages of its boot."),
)
