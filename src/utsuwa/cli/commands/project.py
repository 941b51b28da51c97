"""`utsuwa project`."""

from __future__ import annotations

from utsuwa.cli.commands import objects
from utsuwa.cli.output import values
from utsuwa.cli.output.render import show_list, write_data
from utsuwa.cli.parsing.command import Command, format_flag
from utsuwa.cli.parsing.flags import MANY, Flag
from utsuwa.client.server import path_to

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session


_IN_BYTES = ("disk", "memory")


class _Project(objects.Noun):
    def has_moved(self, session: Session, text: str, new: str) -> None:
        """Switch to the new name of the current project, or back to `default`."""
        remote, name = session.config.split(text)
        if session.config.remote(remote).project == name:
            session.config.remote(remote).project = new
            session.config.save()


_NOUN = _Project(
    "project",
    "projects",
    kind="project",
    fields=("config", "description"),
    members="projects",
    argument="project",
    keys="project-keys",
    sample="web",
)


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


def _create(session: Session, arguments: list[str], flags: Flags) -> None:
    server, name = session.target(arguments[0])
    server.post("/1.0/projects", {"name": name, "config": values.pairs(flags.many("config"))})
    session.say(f"Project {name} created")


def _info(session: Session, arguments: list[str], flags: Flags) -> None:
    server, name = session.target(arguments[0])
    state, style = server.get(f"{_NOUN.url(name)}/state"), flags.text("format")
    if style in ("json", "yaml"):
        write_data(session, style, state, "project-state")
        return

    def amount(resource: dict[str, Any], field: str) -> str:
        count = resource[field]
        if count < 0:
            return "UNLIMITED"
        return values.size(count) if resource["name"] in _IN_BYTES else str(count)

    show_list(
        session,
        style,
        [
            ("RESOURCE", lambda r: r["name"].upper()),
            ("LIMIT", lambda r: amount(r, "Limit")),
            ("USAGE", lambda r: amount(r, "Usage")),
        ],
        [{"name": name, **resource} for name, resource in state["resources"].items()],
        "project-state",
    )


def _switch(session: Session, arguments: list[str], _flags: Flags) -> None:
    """Make an existing project the default for this remote."""
    remote, name = session.config.split(arguments[0])
    session.server(remote).get(path_to("projects", name))
    session.config.remote(remote).project = name
    session.config.save()


_ONE = "[<remote>:]<project>"

COMMAND = Command(
    "project",
    "Manage projects",
    children=(
        Command(
            "create",
            "Create projects",
            _create,
            args=_ONE,
            flags=(
                Flag(
                    "config",
                    "Config key/value to apply to the new project",
                    "c",
                    kind=MANY,
                    complete="project-keys",
                ),
            ),
            example=(
                "utsuwa project create web -c limits.memory=8GiB",
                "Create the project web, whose instances may have 8 GiB of memory together.",
            ),
        ),
        objects.delete(_NOUN),
        objects.edit(_NOUN),
        objects.get(_NOUN),
        Command(
            "info",
            "Get a summary of resource allocations",
            _info,
            args=_ONE,
            flags=(format_flag(),),
            complete=("projects",),
            example=("utsuwa project info web", "Show its limits, and what its instances use of them."),
        ),
        Command(
            "list",
            "List projects",
            _list,
            args="[<remote>:]",
            flags=(format_flag(),),
            aliases=("ls",),
            example=("utsuwa project list", "List all projects; the current one is marked."),
        ),
        objects.rename(_NOUN),
        objects.set_(_NOUN),
        objects.show(_NOUN, in_order=False),
        Command(
            "switch",
            "Switch the current project",
            _switch,
            args=_ONE,
            complete=("projects",),
            example=("utsuwa project switch default", "Use this project for further commands."),
        ),
        objects.unset(_NOUN, lenient=True),
    ),
)
