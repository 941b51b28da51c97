"""`utsuwa profile`."""

from __future__ import annotations

from utsuwa.cli.commands import devices, objects
from utsuwa.cli.errors import CommandFailed
from utsuwa.cli.output.render import list_query, show_list
from utsuwa.cli.parsing.command import Command, all_projects_flag, format_flag
from utsuwa.cli.parsing.flags import TEXT, Flag
from utsuwa.client.server import path_to

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.cli.output.render import Column
    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session

_NOUN = objects.Noun(
    "profile",
    "profiles",
    kind="profile",
    fields=("config", "description", "devices"),
    members="profiles",
    argument="profile",
    keys="instance-keys",
)


_COLUMNS: tuple[Column, ...] = (
    ("NAME", lambda p: p["name"]),
    ("DESCRIPTION", lambda p: p["description"]),
    ("USED BY", lambda p: str(len(p["used_by"]))),
)


def _list(session: Session, arguments: list[str], flags: Flags) -> None:
    server, _ = session.takes_remote(arguments)
    query, columns = list_query(flags, _COLUMNS)
    show_list(session, flags.text("format"), columns, server.get("/1.0/profiles", **query), "profile")


def _create(session: Session, arguments: list[str], _flags: Flags) -> None:
    from utsuwa.cli import piped_yaml

    server, name = session.target(arguments[0])
    given = piped_yaml.given()
    body = {field: given[field] for field in _NOUN.fields if field in given} | {"name": name}
    server.post("/1.0/profiles", body)
    session.say(f"Profile {name} created")


def _copy(session: Session, arguments: list[str], flags: Flags) -> None:
    source, name = session.target(arguments[0])
    target, new_name = session.target(arguments[1])
    profile = source.get(_NOUN.url(name))
    body = {field: profile[field] for field in _NOUN.fields} | {"name": new_name or name}
    project = flags.text("target-project")
    target.post("/1.0/profiles", body, **({"project": project} if project else {}))


def _change(session: Session, text: str, change: list[str], *, keep: bool, add: bool) -> str:
    """Set (not `keep`), add or remove profiles of an instance; return its name."""
    server, name = session.target(text)
    url = path_to("instances", name)
    instance, etag = server.get_with_etag(url)
    had = list(instance["profiles"])
    if not keep:
        profiles = change
    elif add:
        profiles = had + change
    else:
        missing = [profile for profile in change if profile not in had]
        if missing:
            raise CommandFailed(f"Profile {missing[0]} isn't currently applied to {name}")
        profiles = [profile for profile in had if profile not in change]
    fields = ("architecture", "config", "devices", "ephemeral", "stateful", "description")
    body = {field: instance[field] for field in fields} | {"profiles": profiles}
    session.settle(server, server.put(url, body, etag))
    return name


def _assign(session: Session, arguments: list[str], _flags: Flags) -> None:
    profiles = [profile for profile in arguments[1].split(",") if profile]
    name = _change(session, arguments[0], profiles, keep=False, add=False)
    shown = ",".join(profiles) or "(none)"
    session.say(f"Profiles {shown} applied to {name}")


def _add(session: Session, arguments: list[str], _flags: Flags) -> None:
    name = _change(session, arguments[0], [arguments[1]], keep=True, add=True)
    session.say(f"Profile {arguments[1]} added to {name}")


def _remove(session: Session, arguments: list[str], _flags: Flags) -> None:
    name = _change(session, arguments[0], [arguments[1]], keep=True, add=False)
    session.say(f"Profile {arguments[1]} removed from {name}")


_ONE = "[<remote>:]<instance> <profile>"
_BOTH = ("instances", "profiles")

COMMAND = Command(
    "profile",
    "Manage profiles",
    children=(
        Command(
            "add",
            "Add profiles to instances",
            _add,
            args=_ONE,
            complete=_BOTH,
            example=(
                "utsuwa profile add web docker",
                "Append the profile docker to those of web.",
            ),
        ),
        Command(
            "assign",
            "Assign sets of profiles to instances",
            _assign,
            args="[<remote>:]<instance> <profiles>",
            aliases=("apply",),
            complete=_BOTH,
            example=("utsuwa profile assign web default,docker", "Set the profiles of web; use '' for none."),
        ),
        Command(
            "copy",
            "Copy profiles",
            _copy,
            args="[<remote>:]<profile> [<remote>:]<profile>",
            flags=(Flag("target-project", "Copy to another project", kind=TEXT, complete="projects"),),
            aliases=("cp",),
            complete=("profiles", "profiles"),
            example=("utsuwa profile copy default big", "Create the profile big as a copy of default."),
        ),
        Command(
            "create",
            "Create profiles",
            _create,
            args="[<remote>:]<profile>",
            details="YAML on standard input may set config, description and devices.",
            example=("utsuwa profile create docker < docker.yaml", "Create a profile from a file."),
        ),
        objects.delete(_NOUN),
        devices.group("profiles", "profile", "profile"),
        objects.edit(_NOUN),
        objects.get(_NOUN),
        Command(
            "list",
            "List profiles",
            _list,
            args="[<remote>:]",
            flags=(all_projects_flag("profiles"), format_flag()),
            aliases=("ls",),
            example=("utsuwa profile list", "List all profiles with the number of their instances."),
        ),
        Command(
            "remove",
            "Remove profiles from instances",
            _remove,
            args=_ONE,
            complete=_BOTH,
            example=("utsuwa profile remove web docker", "Remove the profile docker from web."),
        ),
        objects.rename(_NOUN),
        objects.set_(_NOUN),
        objects.show(_NOUN),
        objects.unset(_NOUN),
    ),
)
