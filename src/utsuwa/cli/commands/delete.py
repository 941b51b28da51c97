"""`utsuwa delete`, for instances and snapshots."""

from __future__ import annotations

from utsuwa.cli.errors import CommandFailed
from utsuwa.cli.parsing.command import Command
from utsuwa.cli.parsing.flags import Flag
from utsuwa.client.errors import ApiError
from utsuwa.client.server import instance_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session
    from utsuwa.client.server import Server


def _run(session: Session, arguments: list[str], flags: Flags) -> int:
    """Check that all instances exist and may be deleted before deleting the first one."""
    targets = [(text, *session.target(text)) for text in arguments]
    for text, server, name in targets:
        _check(server, name, text, flags)
    for _text, server, name in targets:
        if not flags.on("interactive") or _confirmed(name):
            delete(session, server, name)
    return 0


def _check(server: Server, name: str, text: str, flags: Flags) -> None:
    try:
        instance = server.get(instance_path(name))
    except ApiError as error:
        raise CommandFailed(f'Failed checking instance exists "{text}": {error}') from error
    if "/" in name:
        return
    if instance["status"] != "Stopped" and not flags.on("force"):
        raise CommandFailed("The instance is currently running, stop it first or pass --force")
    if instance["expanded_config"].get("security.protection.delete") in ("true", "1", "yes", "on"):
        raise CommandFailed(f"{text} is protected: unset security.protection.delete first")


def delete(session: Session, server: Server, name: str) -> None:
    """Delete an instance, which is stopped first, or a snapshot."""
    url = instance_path(name)
    if "/" not in name and server.get(url)["status"] != "Stopped":
        body = {"action": "stop", "timeout": -1, "force": True, "stateful": False}
        session.wait(server, server.put(f"{url}/state", body), f"Stopping {name}")
    try:
        session.wait(server, server.delete(url), f"Deleting {name}")
    except ApiError as error:
        if error.code != 404:  # an ephemeral instance was deleted when it stopped
            raise


def _confirmed(name: str) -> bool:
    answer = input(f"Remove {name} (yes/no): ")
    if answer.lower() not in ("yes", "y"):
        raise CommandFailed("User aborted delete operation")
    return True


COMMAND = Command(
    "delete",
    "Delete instances and snapshots",
    _run,
    args="[<remote>:]<instance>[/<snapshot>] [[<remote>:]<instance>[/<snapshot>]...]",
    flags=(
        Flag("force", "Force the removal of running instances", "f"),
        Flag("interactive", "Require user confirmation", "i"),
    ),
    aliases=("rm",),
    example=("utsuwa delete web --force", "Stop web and delete it."),
    complete=("instances-and-snapshots",),
)
