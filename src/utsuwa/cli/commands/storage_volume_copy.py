"""`utsuwa storage volume copy`, `move`, `snapshot` and `restore`."""

from __future__ import annotations

from utsuwa.cli.errors import CommandFailed, UsageError
from utsuwa.cli.migrating import MODES, PULL, Migration
from utsuwa.cli.parsing.command import Command
from utsuwa.cli.parsing.flags import TEXT, Flag
from utsuwa.cli.volumes import Place, split
from utsuwa.client.errors import ApiError
from utsuwa.client.server import path_to

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session

_NEVER = "0001-01-01T00:00:00Z"
_MODE = Flag(
    "mode", "Transfer mode between servers (pull, push, relay)", kind=TEXT, default=PULL, complete=MODES
)
_TARGET_PROJECT = Flag("target-project", "Another project as the destination", kind=TEXT, complete="projects")


def _both(session: Session, arguments: list[str]) -> tuple[Place, Place]:
    """Return source and destination. Raises UsageError, CommandFailed."""
    source, target = split(session, arguments[0], "source"), split(session, arguments[1], "target")
    target.no_snapshot("A snapshot cannot be the destination of a copy")
    return source, target


def _copy(session: Session, arguments: list[str], flags: Flags) -> None:
    source, target = _both(session, arguments)
    _check_mode(flags)
    if source.server is target.server:
        _copy_here(session, source, target, flags)
    else:
        refresh, only = flags.on("refresh"), flags.on("volume-only")
        _send(session, arguments, (source, target), flags, {"refresh": refresh, "volume_only": only})
    session.say("Storage volume copied successfully!")


def _check_mode(flags: Flags) -> None:
    if flags.text("mode") not in MODES:
        raise UsageError(f"Unknown mode {flags.text('mode')!r}: use {', '.join(MODES)}")


def _new(record: dict[str, Any], target: Place) -> dict[str, Any]:
    """Return the request for a volume like another one, without its source."""
    return {
        "name": target.volume,
        "type": "custom",
        "config": record["config"],
        "description": record["description"],
        "content_type": record["content_type"],
    }


def _copy_here(session: Session, source: Place, target: Place, flags: Flags) -> None:
    server, project = source.server, flags.text("target-project")
    body = _new(server.get(source.url), target) | {
        "source": {
            "type": "copy",
            "name": source.name,
            "pool": source.pool,
            "project": server.project,
            "volume_only": flags.on("volume-only"),
            "refresh": flags.on("refresh"),
        },
    }
    query = {"project": project} if project else {}
    answer = server.post(path_to("storage-pools", target.pool, "volumes", "custom"), body, **query)
    session.wait(server, answer, f"Copying the storage volume {source.name}")


def _send(
    session: Session,
    arguments: list[str],
    places: tuple[Place, Place],
    flags: Flags,
    what: dict[str, bool],
) -> None:
    """Copy from a server to another one."""
    source, target = places
    source.no_snapshot("Snapshots go to other servers with their volume: copy the volume instead")
    source_remote, target_remote = (session.config.split(text)[0] for text in arguments[:2])
    offer = {"name": source.volume, "migration": True, "volume_only": what["volume_only"]}
    wanted = _new(source.server.get(source.url), target) | {"source": what}
    project = flags.text("target-project")
    Migration(
        session,
        (source_remote, source.url, offer),
        (target_remote, path_to("storage-pools", target.pool, "volumes", "custom"), wanted),
    ).run(
        flags.text("mode"),
        f"Copying the storage volume {source.name}",
        **({"project": project} if project else {}),
    )


def _move(session: Session, arguments: list[str], flags: Flags) -> None:
    source, target = _both(session, arguments)
    source.no_snapshot("Snapshots stay with their volume: rename or copy them instead")
    _check_mode(flags)
    if source.server is target.server:
        body = {"name": target.volume, "pool": target.pool, "project": flags.text("target-project")}
        label = f"Moving the storage volume {source.name}"
        session.settle(source.server, source.server.post(source.url, body), label)
    else:
        if users := source.server.get(source.url)["used_by"]:
            raise CommandFailed(
                f"The storage volume {source.name} is still in use: detach it from {users[0]}"
            )
        _send(session, arguments, (source, target), flags, {"refresh": False, "volume_only": False})
        source.server.delete(source.url)
    session.say("Storage volume moved successfully!")


def _snapshot(session: Session, arguments: list[str], flags: Flags) -> None:
    place = Place(session, arguments[0], arguments[1]).only_custom("snapshotted")
    name = arguments[2] if len(arguments) > 2 else ""
    url = f"{place.url}/snapshots"
    if name and flags.on("reuse"):
        old = Place(session, arguments[0], f"{place.name}/{name}")
        try:
            place.server.get(old.url)
        except ApiError as error:
            if error.status != 404:
                raise
        else:
            session.wait(place.server, place.server.delete(old.url))
    body: dict[str, Any] = {"name": name}
    if flags.on("no-expiry"):
        body["expires_at"] = _NEVER
    session.wait(place.server, place.server.post(url, body), f"Creating a snapshot of {place.name}")


def _restore(session: Session, arguments: list[str], _flags: Flags) -> None:
    place = Place(session, arguments[0], arguments[1])
    place.server.put(place.url, {"restore": arguments[2]})


COPY = Command(
    "copy",
    "Copy storage volumes",
    _copy,
    args="[<remote>:]<pool>/<volume>[/<snapshot>] [<remote>:]<pool>/<volume>",
    flags=(
        _MODE,
        Flag("refresh", "Refresh and update the existing storage volume copies"),
        _TARGET_PROJECT,
        Flag("volume-only", "Copy the volume without its snapshots"),
    ),
    aliases=("cp",),
    example=("utsuwa storage volume copy default/data/snap0 fast/data", "Make a volume of a snapshot."),
    complete=("pools-and-volumes", "pools-and-volumes"),
)
MOVE = Command(
    "move",
    "Move storage volumes between pools",
    _move,
    args="[<remote>:]<pool>/<volume> [<remote>:]<pool>/<volume>",
    flags=(_MODE, _TARGET_PROJECT),
    aliases=("mv",),
    example=("utsuwa storage volume move default/data fast/data", "Move a volume to another pool."),
    complete=("pools-and-volumes", "pools-and-volumes"),
)
SNAPSHOT = Command(
    "snapshot",
    "Snapshot storage volumes",
    _snapshot,
    args="[<remote>:]<pool> <volume> [<snapshot>]",
    flags=(
        Flag("no-expiry", "Ignore any configured auto-expiry for the storage volume"),
        Flag("reuse", "If the snapshot name already exists, delete and create a new one"),
    ),
    example=("utsuwa storage volume snapshot default data before-update", "Take a snapshot."),
    complete=("pools", "volumes", ()),
)
RESTORE = Command(
    "restore",
    "Restore storage volume snapshots",
    _restore,
    args="[<remote>:]<pool> <volume> <snapshot>",
    example=("utsuwa storage volume restore default data before-update", "Bring its files back."),
    complete=("pools", "volumes", "volume-snapshots"),
)
