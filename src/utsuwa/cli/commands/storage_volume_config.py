"""`utsuwa storage volume create`, `delete`, `rename`, `show`, and the commands for configuration keys."""

from __future__ import annotations

from utsuwa.cli.commands.objects import remove_key
from utsuwa.cli.errors import UsageError
from utsuwa.cli.output import values
from utsuwa.cli.output.render import show_yaml
from utsuwa.cli.parsing.command import Command
from utsuwa.cli.parsing.flags import TEXT, Flag
from utsuwa.cli.volumes import Place
from utsuwa.client.server import path_to

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from utsuwa.cli.parsing.command import Run
    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session


def _create(session: Session, arguments: list[str], flags: Flags) -> None:
    place = Place(session, arguments[0], arguments[1])
    body = {
        "name": place.name,
        "type": place.type,
        "content_type": flags.text("type"),
        "config": values.pairs(arguments[2:]),
    }
    place.server.post(path_to("storage-pools", place.pool, "volumes", place.type), body)
    session.say(f"Storage volume {place.text} created")


def _delete(session: Session, arguments: list[str], _flags: Flags) -> None:
    place = Place(session, arguments[0], arguments[1])
    session.settle(place.server, place.server.delete(place.url))
    session.say(f"Storage volume {place.text} deleted")


def _rename(session: Session, arguments: list[str], _flags: Flags) -> None:
    place, new = Place(session, arguments[0], arguments[1]), arguments[2]
    if place.snapshot:
        volume, slash, new = new.partition("/")
        if volume != place.volume or not slash:
            raise UsageError(
                "Invalid new snapshot name: it needs the same volume, as in "
                f"{place.volume}/{place.snapshot} {place.volume}/NEW"
            )
    session.settle(place.server, place.server.post(place.url, {"name": new}))
    session.say(f'Renamed storage volume from "{place.name}" to "{new}"')


def _show(session: Session, arguments: list[str], _flags: Flags) -> None:
    place = Place(session, arguments[0], arguments[1])
    record = place.server.get(place.url)
    if record.get("used_by"):
        record["used_by"] = sorted(record["used_by"])
    show_yaml(session, record, place.kind)


def _get(session: Session, arguments: list[str], _flags: Flags) -> None:
    place = Place(session, arguments[0], arguments[1])
    found = place.server.get(place.url)["config"]
    if arguments[2] in found:
        session.write(f"{found[arguments[2]]}\n")


def _writable(session: Session, arguments: list[str]) -> tuple[Place, dict[str, Any], str]:
    """Return a volume, its record and its ETag, for a change of its keys. Raises CommandFailed."""
    place = Place(session, arguments[0], arguments[1])
    place.no_snapshot("Snapshots are read-only and can't have their configuration changed")
    return place, *place.server.get_with_etag(place.url)


def _put(place: Place, record: dict[str, Any], etag: str) -> None:
    fields = ("description", "expires_at") if place.snapshot else ("config", "description")
    body = {field: record[field] for field in fields if field in record}
    place.server.put(place.url, body, etag)


def _set(session: Session, arguments: list[str], _flags: Flags) -> None:
    changes = values.changes(arguments[2:])
    place, record, etag = _writable(session, arguments)
    record["config"] |= changes
    _put(place, record, etag)


def _unset(session: Session, arguments: list[str], _flags: Flags) -> None:
    place, record, etag = _writable(session, arguments)
    remove_key(record["config"], arguments[2])
    _put(place, record, etag)


def _edit(session: Session, arguments: list[str], _flags: Flags) -> None:
    from utsuwa.cli import editor
    from utsuwa.cli.output import yaml_out
    from utsuwa.cli.output.records import arrange

    place = Place(session, arguments[0], arguments[1])
    record, etag = place.server.get_with_etag(place.url)
    fields = ("description", "expires_at") if place.snapshot else ("config", "description")
    text = yaml_out.dump(arrange({field: record[field] for field in fields}, place.kind))
    note = f"# The configuration of the storage volume {place.text}. Lines starting with # are ignored.\n"
    editor.edit(session, note + text, lambda changed: _put(place, changed, etag))


def _command(
    name: str, summary: str, run: Run, more: str, example: str, meaning: str, **rest: Any
) -> Command:
    return Command(
        name,
        summary,
        run,
        args=f"[<remote>:]<pool> <volume>{more}",
        example=(f"utsuwa storage volume {name} default {example}", meaning),
        complete=("pools", "volumes", *rest.pop("complete", ((),))),
        **rest,
    )


CREATE = Command(
    "create",
    "Create new custom storage volumes",
    _create,
    args="[<remote>:]<pool> <volume> [<key>=<value>...]",
    flags=(Flag("type", "Content type, which is filesystem", kind=TEXT, default="filesystem"),),
    example=("utsuwa storage volume create default data size=10GiB", "Create a volume for files."),
    complete=("pools", ()),
)
DELETE = _command(
    "delete", "Delete storage volumes", _delete, "[/<snapshot>]", "data", "Delete it.", aliases=("rm",)
)
RENAME = _command(
    "rename",
    "Rename storage volumes and storage volume snapshots",
    _rename,
    "[/<snapshot>] <new-name>[/<new-snapshot-name>]",
    "data files",
    "Rename a volume; devices follow it.",
)
SHOW = _command(
    "show",
    "Show storage volume configurations",
    _show,
    "[/<snapshot>]",
    "container/web",
    "Show the volume of an instance's root disk; without a prefix, a custom volume.",
)
GET = _command(
    "get",
    "Get values for storage volume configuration keys",
    _get,
    "[/<snapshot>] <key>",
    "data size",
    "Print the size.",
    complete=("volume-key",),
)
SET = _command(
    "set",
    "Set storage volume configuration keys",
    _set,
    " <key>=<value>...",
    "data snapshots.schedule=@daily",
    "Take a snapshot each day; `KEY VALUE` is accepted too.",
    complete=("volume-keys",),
)
UNSET = _command(
    "unset",
    "Unset storage volume configuration keys",
    _unset,
    " <key>",
    "data size",
    "Remove the key.",
    complete=("volume-key",),
)
EDIT = _command(
    "edit",
    "Edit storage volume configurations as YAML",
    _edit,
    "[/<snapshot>]",
    "data < volume.yaml",
    "Read the new configuration from a file; without one, an editor is opened.",
)
