"""`utsuwa snapshot` and `utsuwa restore`."""

from __future__ import annotations

from utsuwa.cli.parsing.command import Command
from utsuwa.cli.parsing.flags import Flag
from utsuwa.client.server import instance_path, path_to

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session

_NEVER = "0001-01-01T00:00:00Z"


def _snapshot(session: Session, arguments: list[str], flags: Flags) -> None:
    server, name = session.target(arguments[0])
    snapshot = arguments[1] if len(arguments) > 1 else ""
    url = path_to("instances", name, "snapshots")
    if snapshot and flags.on("reuse") and snapshot in _names(server.get(url)):
        session.wait(server, server.delete(instance_path(f"{name}/{snapshot}")))
    body: dict[str, Any] = {"name": snapshot, "stateful": flags.on("stateful")}
    if flags.on("no-expiry"):
        body["expires_at"] = _NEVER
    session.wait(server, server.post(url, body), f"Creating a snapshot of {name}")


def _names(urls: list[str]) -> list[str]:
    return [url.rsplit("/", 1)[1].split("?")[0] for url in urls]


def _restore(session: Session, arguments: list[str], flags: Flags) -> None:
    server, name = session.target(arguments[0])
    body = {"restore": arguments[1], "stateful": flags.on("stateful")}
    session.wait(server, server.put(path_to("instances", name), body), f"Restoring {name}")


SNAPSHOT = Command(
    "snapshot",
    "Create instance snapshots",
    _snapshot,
    args="[<remote>:]<instance> [<snapshot>]",
    flags=(
        Flag("no-expiry", "Ignore any configured auto-expiry for the instance"),
        Flag("reuse", "If the snapshot name already exists, delete and create a new one"),
        Flag("stateful", "Whether or not to snapshot the instance's running state"),
    ),
    example=("utsuwa snapshot web before-update", "Take a snapshot of web."),
    complete=("instances", ()),
)
RESTORE = Command(
    "restore",
    "Restore instances from snapshots",
    _restore,
    args="[<remote>:]<instance> <snapshot>",
    flags=(Flag("stateful", "Whether or not to restore the instance's running state from snapshot"),),
    example=("utsuwa restore web before-update", "Return web to the state of the snapshot."),
    complete=("instances", "own-snapshots"),
)
