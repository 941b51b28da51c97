"""`utsuwa storage volume`."""

from __future__ import annotations

from utsuwa.cli.commands.storage_volume_attach import ATTACH, ATTACH_PROFILE, DETACH, DETACH_PROFILE
from utsuwa.cli.commands.storage_volume_config import CREATE, DELETE, EDIT, GET, RENAME, SET, SHOW, UNSET
from utsuwa.cli.commands.storage_volume_copy import COPY, MOVE, RESTORE, SNAPSHOT
from utsuwa.cli.errors import CommandFailed, UsageError
from utsuwa.cli.output import table, values
from utsuwa.cli.output.render import natural, show_list
from utsuwa.cli.parsing.command import Command, format_flag
from utsuwa.cli.parsing.flags import TEXT, Flag
from utsuwa.cli.volumes import Place
from utsuwa.client.errors import ApiError
from utsuwa.client.server import path_to

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session
    from utsuwa.client.server import Server

    Volume = dict[str, Any]

_DEFAULT = "tndcu"
_COLUMNS: dict[str, tuple[str, Callable[[Volume], str]]] = {
    "c": ("CONTENT-TYPE", lambda v: v["content_type"] or "filesystem"),
    "d": ("DESCRIPTION", lambda v: v["description"]),
    "e": ("PROJECT", lambda v: v["project"]),
    "n": ("NAME", lambda v: v["name"]),
    "t": ("TYPE", lambda v: f"{v['type']} (snapshot)" if "/" in v["name"] else v["type"]),
    "u": ("USED BY", lambda v: str(len(v["used_by"] or ()))),
    "U": ("USAGE", lambda v: v.get("usage", "")),
}


def _list(session: Session, arguments: list[str], flags: Flags) -> None:
    server, pool = session.target(arguments[0])
    columns = flags.text("columns")
    everywhere = flags.on("all-projects")
    if everywhere and not flags.given("columns"):
        columns = f"e{columns}"
    for letter in columns.replace(",", ""):
        if letter not in _COLUMNS:
            raise UsageError(f"Unknown column shorthand char '{letter}' in '{columns}'")
    query = {"recursion": "1"} | ({"all_projects": "true"} if everywhere else {})
    url = path_to("storage-pools", pool, "volumes")
    volumes = [v for v in server.get(url, **query) if _fits(v, arguments[1:])]
    if "U" in columns:
        for volume in volumes:
            volume["usage"] = _usage(server, url, volume)
    chosen = [_COLUMNS[letter] for letter in columns.replace(",", "")]
    show_list(session, flags.text("format"), chosen, volumes, "volume")


def _fits(volume: Volume, filters: list[str]) -> bool:
    """Match `key=value` for a field or a configuration key, or the prefix of a name."""
    for text in filters:
        key, equals, value = text.partition("=")
        if not equals:
            if not volume["name"].startswith(text):
                return False
        elif str(volume.get(key, volume["config"].get(key, ""))) != value:
            return False
    return True


def _usage(server: Server, url: str, volume: Volume) -> str:
    try:
        state = server.get(f"{url}/{volume['type']}/{path_to(volume['name'])[5:]}/state")
    except ApiError:  # volumes of this type have no state
        return ""
    return values.size(state["usage"]["used"]) if state.get("usage") else ""


def _info(session: Session, arguments: list[str], _flags: Flags) -> None:
    place = Place(session, arguments[0], arguments[1])
    if place.snapshot or place.type == "image":
        raise CommandFailed("Only instance or custom volumes are supported")
    volume, state = place.server.get(place.url), place.server.get(f"{place.url}/state")
    snapshots = place.server.get(f"{place.url}/snapshots", recursion="1")
    session.write("".join(f"{line}\n" for line in _describe(volume, state.get("usage"))))
    if snapshots:
        header = ("NAME", "DESCRIPTION", "EXPIRES AT")
        rows = sorted(map(_snapshot_row, snapshots), key=lambda row: natural(row[0]))
        session.write(f"\nSnapshots:\n{table.table(header, rows)}")


def _describe(volume: Volume, usage: dict[str, int] | None) -> Iterator[str]:
    yield f"Name: {volume['name']}"
    if volume["description"]:
        yield f"Description: {volume['description']}"
    yield f"Type: {volume['type']}"
    yield f"Content type: {volume['content_type'] or 'filesystem'}"
    if usage is not None:
        yield f"Usage: {values.size(usage['used'])}"
        if usage.get("total"):
            yield f"Total: {values.size(usage['total'])}"


def _snapshot_row(snapshot: Volume) -> list[str]:
    name = snapshot["name"].rpartition("/")[2]
    return [name, snapshot["description"], values.minute(snapshot["expires_at"]) or " "]


COMMAND = Command(
    "volume",
    "Manage storage volumes",
    details="""\
A volume is a custom one unless it has the prefix of another type: `container/web`.""",
    children=(
        ATTACH,
        ATTACH_PROFILE,
        COPY,
        CREATE,
        DELETE,
        DETACH,
        DETACH_PROFILE,
        EDIT,
        GET,
        Command(
            "info",
            "Show storage volume state information",
            _info,
            args="[<remote>:]<pool> <volume>",
            complete=("pools", "volumes"),
            example=("utsuwa storage volume info default data", "Show usage and snapshots."),
        ),
        Command(
            "list",
            "List storage volumes",
            _list,
            args="[<remote>:]<pool> [<filter>...]",
            flags=(
                Flag("all-projects", "All projects"),
                Flag("columns", "Columns", "c", kind=TEXT, default=_DEFAULT),
                format_flag(),
            ),
            aliases=("ls",),
            details="""\
Columns: c - content type, d - description, e - project, n - name, t - type of volume,
u - number of references (used by), U - current disk usage.""",
            complete=("pools", ()),
            example=(
                "utsuwa storage volume list default type=container",
                "List root disks of instances.",
            ),
        ),
        MOVE,
        RENAME,
        RESTORE,
        SET,
        SHOW,
        SNAPSHOT,
        UNSET,
    ),
)
