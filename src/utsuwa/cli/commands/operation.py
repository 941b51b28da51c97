"""`utsuwa operation`."""

from __future__ import annotations

from utsuwa.cli.output import values
from utsuwa.cli.output.render import show_list, show_yaml
from utsuwa.cli.parsing.command import Command, format_flag
from utsuwa.client.server import path_to

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session


def _list(session: Session, arguments: list[str], flags: Flags) -> None:
    server, _ = session.takes_remote(arguments)
    groups = server.get("/1.0/operations", recursion="1") or {}
    show_list(
        session,
        flags.text("format"),
        [
            ("ID", lambda o: o["id"]),
            ("TYPE", lambda o: o["class"].upper()),
            ("DESCRIPTION", lambda o: o["description"]),
            ("STATUS", lambda o: o["status"].upper()),
            ("CANCELABLE", lambda o: "YES" if o["may_cancel"] else "NO"),
            ("CREATED", lambda o: values.minute(o["created_at"])),
        ],
        [operation for group in groups.values() for operation in group],
        "operation",
    )


def _show(session: Session, arguments: list[str], _flags: Flags) -> None:
    server, name = session.target(arguments[0])
    show_yaml(session, server.get(path_to("operations", name)), "operation")


def _delete(session: Session, arguments: list[str], _flags: Flags) -> None:
    server, name = session.target(arguments[0])
    server.delete(path_to("operations", name))
    session.say(f"Operation {name} deleted")


_ONE = "[<remote>:]<operation>"
_EXAMPLE = "344a79e4-d88a-45bf-9c39-c72c26f6ab8a"

COMMAND = Command(
    "operation",
    "List, show and delete background operations",
    children=(
        Command(
            "delete",
            "Delete a background operation (will attempt to cancel)",
            _delete,
            args=_ONE,
            aliases=("cancel", "rm"),
            complete=("operations",),
            example=(f"utsuwa operation delete {_EXAMPLE}", "Cancel it if possible."),
        ),
        Command(
            "list",
            "List background operations",
            _list,
            args="[<remote>:]",
            flags=(format_flag(),),
            aliases=("ls",),
            example=("utsuwa operation list", "List the running operations."),
        ),
        Command(
            "show",
            "Show details on a background operation",
            _show,
            args=_ONE,
            complete=("operations",),
            example=(f"utsuwa operation show {_EXAMPLE}", "Show an operation and its progress."),
        ),
    ),
)
