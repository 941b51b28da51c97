"""`utsuwa config template`: the templates from which files of an instance are created."""

from __future__ import annotations

import sys

from utsuwa.cli.output.render import show_list, write_data
from utsuwa.cli.parsing.command import Command, format_flag
from utsuwa.client.server import path_to, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session


class _Template:
    """A template of an instance, whether it exists or not."""

    def __init__(self, session: Session, arguments: list[str]) -> None:
        self._server, instance = session.target(arguments[0])
        self._url = f"{_url(instance)}?path={quote(arguments[1])}"

    def read(self) -> bytes:
        return self._ask("GET")

    def write(self, content: bytes) -> None:
        self._ask("POST", content)

    def delete(self) -> None:
        self._ask("DELETE")

    def _ask(self, method: str, body: bytes | None = None) -> bytes:
        headers = {"Content-Type": "application/octet-stream"}
        return self._server.checked(self._server.raw(method, self._url, body, headers)).read()


def _url(instance: str) -> str:
    return path_to("instances", instance, "metadata", "templates")


def _list(session: Session, arguments: list[str], flags: Flags) -> None:
    server, instance = session.target(arguments[0])
    names, style = server.get(_url(instance)), flags.text("format")
    if style in ("json", "yaml"):
        write_data(session, style, names, "")
        return
    show_list(session, style, [("FILENAME", lambda t: t["name"])], [{"name": name} for name in names], "")


def _show(session: Session, arguments: list[str], _flags: Flags) -> None:
    session.write(_Template(session, arguments).read().decode("utf-8", "surrogateescape"))


def _create(session: Session, arguments: list[str], _flags: Flags) -> None:
    _Template(session, arguments).write(b"")


def _edit(session: Session, arguments: list[str], _flags: Flags) -> None:
    from utsuwa.cli.editor import run_editor

    template = _Template(session, arguments)
    if sys.stdin.isatty():
        template.write(run_editor(template.read(), ".tpl"))
    else:
        template.write(sys.stdin.buffer.read())


def _delete(session: Session, arguments: list[str], _flags: Flags) -> None:
    _Template(session, arguments).delete()


_ONE = "[<remote>:]<instance> <template>"

COMMAND = Command(
    "template",
    "Manage instance file templates",
    children=(
        Command(
            "create",
            "Create new instance file templates",
            _create,
            args=_ONE,
            complete=("instances", ()),
            example=("utsuwa config template create web motd.tpl", "Create an empty template."),
        ),
        Command(
            "delete",
            "Delete instance file templates",
            _delete,
            args=_ONE,
            aliases=("rm",),
            complete=("instances", ()),
            example=("utsuwa config template delete web motd.tpl", "Delete a template."),
        ),
        Command(
            "edit",
            "Edit instance file templates",
            _edit,
            args=_ONE,
            complete=("instances", ()),
            details="Opens $VISUAL or $EDITOR. Without a terminal, standard input replaces the template.",
            example=("utsuwa config template edit web motd.tpl < motd.tpl", "Replace a template by a file."),
        ),
        Command(
            "list",
            "List instance file templates",
            _list,
            args="[<remote>:]<instance>",
            flags=(format_flag(),),
            complete=("instances",),
            example=("utsuwa config template list web", "List the templates of web."),
        ),
        Command(
            "show",
            "Show content of instance file templates",
            _show,
            args=_ONE,
            complete=("instances", ()),
            example=("utsuwa config template show web hostname.tpl", "Print a template."),
        ),
    ),
)
