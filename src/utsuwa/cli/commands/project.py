"""`utsuwa project`."""

from __future__ import annotations

from utsuwa.cli.output.render import show_list, show_yaml
from utsuwa.cli.parsing.command import Command, format_flag
from utsuwa.client.server import path_to

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session


def _list(session: Session, arguments: list[str], flags: Flags) -> None:
    server, _ = session.takes_remote(arguments)
    current = server.project or "default"
    show_list(
        session,
        flags.text("format"),
        [
            ("NAME", lambda p: f"{p['name']} (current)" if p["name"] == current else p["name"]),
            ("IMAGES", _feature("images")),
            ("PROFILES", _feature("profiles")),
            ("STORAGE VOLUMES", _feature("storage.volumes")),
            ("NETWORKS", _feature("networks")),
            ("DESCRIPTION", lambda p: p["description"]),
            ("USED BY", lambda p: str(len(p["used_by"] or ()))),
        ],
        server.get("/1.0/projects", recursion="1"),
        "project",
    )


def _feature(name: str) -> Callable[[dict[str, Any]], str]:
    def cell(project: dict[str, Any]) -> str:
        return "YES" if project["config"].get(f"features.{name}") == "true" else "NO"

    return cell


def _show(session: Session, arguments: list[str], _flags: Flags) -> None:
    server, name = session.target(arguments[0])
    show_yaml(session, server.get(path_to("projects", name)), "project")


def _switch(session: Session, arguments: list[str], _flags: Flags) -> None:
    """Make an existing project the default for this remote."""
    remote, name = session.config.split(arguments[0])
    session.server(remote).get(path_to("projects", name))
    session.config.remote(remote).project = name
    session.config.save()


_ONE = "[<remote>:]<project>"

COMMAND = Command(
    "project",
    "Show and switch projects",
    children=(
        Command(
            "list",
            "List projects",
            _list,
            args="[<remote>:]",
            flags=(format_flag(),),
            aliases=("ls",),
            example=("utsuwa project list", "List all projects; the current one is marked."),
        ),
        Command(
            "show",
            "Show project options",
            _show,
            args=_ONE,
            complete=("projects",),
            example=("utsuwa project show default", "Show its configuration and the objects in it."),
        ),
        Command(
            "switch",
            "Switch the current project",
            _switch,
            args=_ONE,
            complete=("projects",),
            example=("utsuwa project switch default", "Use this project for further commands."),
        ),
    ),
)
