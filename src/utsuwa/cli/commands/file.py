"""`utsuwa file`: files in instances."""

from __future__ import annotations

import os
import sys

from utsuwa.cli.errors import UsageError
from utsuwa.cli.parsing.command import Command, Entry
from utsuwa.cli.parsing.flags import TEXT, Flag
from utsuwa.cli.remote_files import NOT_FOUND, Owner, given_owner, parse
from utsuwa.client.errors import ApiError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session


def _delete(session: Session, arguments: list[str], _flags: Flags) -> None:
    for argument in arguments:
        files, path = parse(session, argument)
        files.delete(path)


def _edit(session: Session, arguments: list[str], _flags: Flags) -> None:
    """Edit a file, or create it; without a terminal, standard input is its new content."""
    from utsuwa.cli.editor import run_editor

    files, path = parse(session, arguments[0])
    if not sys.stdin.isatty():
        files.push(path, sys.stdin.buffer.read(), Owner())
        return
    try:
        content = files.followed(path).content()
    except ApiError as error:
        if error.code != NOT_FOUND:
            raise
        content = b""
    edited = run_editor(content, os.path.splitext(path)[1])
    if edited != content:
        files.push(path, edited, Owner())


def _create(session: Session, arguments: list[str], flags: Flags) -> None:
    kind = flags.text("type")
    files, path = parse(session, arguments[0])
    owner = given_owner(flags)
    if flags.on("create-dirs"):
        files.make_directories(path.rstrip("/").rpartition("/")[0], Owner(owner.uid, owner.gid))
    if kind == "symlink":
        if len(arguments) != 2:
            raise UsageError("Name the symlink and its target")
        files.make_symlink(path, arguments[1], owner)
    elif len(arguments) > 1:
        raise UsageError("Only symlinks have a target: use --type=symlink")
    elif kind == "directory" or path.endswith("/"):
        files.make_directory(path, owner)
    elif kind == "file":
        files.push(path, b"", owner)
    else:
        raise UsageError(f"Unknown type {kind!r}: use file, directory or symlink")


COMMAND = Command(
    "file",
    "Manage files in instances",
    children=(
        Command(
            "create",
            "Create files, directories and symlinks in instances",
            _create,
            args="[<remote>:]<instance>/<path> [<symlink target>]",
            complete=("instances", ()),
            flags=(
                Flag("create-dirs", "Create any directories necessary", "p"),
                Flag("gid", "Set the file's gid", kind=TEXT, default="-1"),
                Flag("mode", "Set the file's permissions (octal)", kind=TEXT),
                Flag(
                    "type",
                    "Type of the file (file|directory|symlink)",
                    kind=TEXT,
                    default="file",
                    complete=("file", "directory", "symlink"),
                ),
                Flag("uid", "Set the file's uid", kind=TEXT, default="-1"),
            ),
            example=("utsuwa file create --type=symlink web/etc/link hosts", "Create a symlink to hosts."),
        ),
        Command(
            "delete",
            "Delete files in instances",
            _delete,
            args="[<remote>:]<instance>/<path>...",
            complete=("instances",),
            aliases=("rm",),
            example=("utsuwa file delete web/tmp/old", "Delete a file or an empty directory."),
        ),
        Command(
            "edit",
            "Edit files in instances",
            _edit,
            args="[<remote>:]<instance>/<path>",
            complete=("instances",),
            details="Opens $VISUAL or $EDITOR. Without a terminal, standard input replaces the file.",
            example=("utsuwa file edit web/etc/hosts", "Edit /etc/hosts of the instance."),
        ),
        Entry("mount", "file_mount", "Mount files from instances"),
        Entry("pull", "file_pull", "Pull files from instances"),
        Entry("push", "file_push", "Push files into instances"),
    ),
)
