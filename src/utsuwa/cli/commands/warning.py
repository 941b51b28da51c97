"""`utsuwa warning`."""

from __future__ import annotations

from utsuwa.cli.errors import UsageError
from utsuwa.cli.output import values
from utsuwa.cli.output.render import show_list, show_yaml
from utsuwa.cli.parsing.command import Command, format_flag
from utsuwa.cli.parsing.flags import TEXT, Flag
from utsuwa.client.server import path_to

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from utsuwa.cli.output.render import Column
    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session

_DEFAULT = "utSscpl"


def _time(field: str) -> Callable[[dict[str, Any]], str]:
    return lambda warning: values.clock(values.local_time(warning[field]))


_COLUMNS: dict[str, Column] = {
    "c": ("COUNT", lambda w: str(w["count"])),
    "l": ("LAST SEEN", _time("last_seen_at")),
    "f": ("FIRST SEEN", _time("first_seen_at")),
    "p": ("PROJECT", lambda w: str(w["project"])),
    "s": ("SEVERITY", lambda w: str(w["severity"]).upper()),
    "S": ("STATUS", lambda w: str(w["status"]).upper()),
    "t": ("TYPE", lambda w: str(w["type"])),
    "u": ("UUID", lambda w: str(w["uuid"])),
}


def _columns(text: str) -> list[Column]:
    """Parse `-c`. Raises UsageError."""
    found = []
    for part in text.split(","):
        if not part:
            raise UsageError(f"Empty column entry (redundant, leading or trailing command) in '{text}'")
        for letter in part:
            if letter == "L":
                raise UsageError("Can't specify column L when not clustered")
            if letter not in _COLUMNS:
                raise UsageError(f"Unknown column shorthand char '{letter}' in '{part}'")
            found.append(_COLUMNS[letter])
    return found


def _list(session: Session, arguments: list[str], flags: Flags) -> None:
    columns = _columns(flags.text("columns"))
    server, _ = session.takes_remote(arguments)
    found = server.get("/1.0/warnings", recursion="1") or []
    if not flags.on("all"):
        found = [warning for warning in found if warning["status"] == "new"]
    show_list(session, flags.text("format"), columns, found, "warning")


def _show(session: Session, arguments: list[str], _flags: Flags) -> None:
    server, uuid = session.target(arguments[0])
    show_yaml(session, server.get(path_to("warnings", uuid)), "warning")


def _acknowledge(session: Session, arguments: list[str], _flags: Flags) -> None:
    server, uuid = session.target(arguments[0])
    _record, etag = server.get_with_etag(path_to("warnings", uuid))
    server.put(path_to("warnings", uuid), {"status": "acknowledged"}, etag)


def _delete(session: Session, arguments: list[str], flags: Flags) -> None:
    if not flags.on("all"):
        if not arguments:
            raise UsageError("Specify a warning UUID or use --all")
        server, uuid = session.target(arguments[0])
        server.delete(path_to("warnings", uuid))
        return
    server, rest = session.takes_remote(arguments)
    if rest:
        raise UsageError("Specify either a warning UUID or --all")
    for warning in server.get("/1.0/warnings", recursion="1") or []:
        server.delete(path_to("warnings", warning["uuid"]))


_ONE = "[<remote>:]<warning-uuid>"
_EXAMPLE = "344a79e4-d88a-45bf-9c39-c72c26f6ab8a"

COMMAND = Command(
    "warning",
    "Manage warnings",
    children=(
        Command(
            "acknowledge",
            "Acknowledge a warning, so that it is no longer listed",
            _acknowledge,
            args=_ONE,
            aliases=("ack",),
            complete=("warnings",),
            example=(f"utsuwa warning acknowledge {_EXAMPLE}", "Leave it out of the list."),
        ),
        Command(
            "delete",
            "Delete warnings",
            _delete,
            args="[<remote>:][<warning-uuid>]",
            flags=(Flag("all", "Delete all warnings", "a"),),
            aliases=("rm",),
            complete=("warnings",),
            example=("utsuwa warning delete --all", "Delete all warnings; current ones come back."),
        ),
        Command(
            "list",
            "List warnings",
            _list,
            args="[<remote>:]",
            flags=(
                Flag("all", "List all warnings, including acknowledged and resolved ones", "a"),
                Flag("columns", "Columns", "c", kind=TEXT, default=_DEFAULT),
                format_flag(),
            ),
            aliases=("ls",),
            example=("utsuwa warning list --all -c utSl", "List all warnings with four columns."),
            details=f"""\
Columns (-c, letters with or without commas in between):
    c - Count           l - Last seen       S - Status
    f - First seen      p - Project         t - Type
    s - Severity        u - UUID
The default is {_DEFAULT}.""",
        ),
        Command(
            "show",
            "Show a warning",
            _show,
            args=_ONE,
            complete=("warnings",),
            example=(f"utsuwa warning show {_EXAMPLE}", "Show the message and what it is about."),
        ),
    ),
)
