"""The top-level commands, which are loaded on demand, and the global flags."""

from __future__ import annotations

from utsuwa.cli.errors import UsageError
from utsuwa.cli.parsing.command import Command, Entry
from utsuwa.cli.parsing.flags import BOOL, TEXT, Flag
from utsuwa.core.errors import InvalidRequest

GLOBAL_FLAGS = (
    Flag("debug", "Show requests and responses"),
    Flag("force-local", "Use the local unix socket, regardless of the default remote"),
    Flag("help", "Print help", "h"),
    Flag("project", "Override the project", kind=TEXT, complete="projects"),
    Flag("quiet", "Don't show progress information", "q"),
    Flag("verbose", "Show all information messages", "v"),
    Flag("version", "Print version number"),
)

ROOT = Command(
    "utsuwa",
    "The client of Utsuwa: system containers on this host and on others",
    details="Objects on another server are specified as <remote>:<name>; see `utsuwa remote list`.",
    children=(
        Entry("alias", "alias", "Manage command aliases"),
        Entry("completion", "completion", "Print the completion script of a shell"),
        Entry("config", "config", "Manage instance and server configuration options"),
        Entry("console", "console", "Attach to instance consoles"),
        Entry("copy", "copy:COPY", "Copy instances", ("cp",)),
        Entry("delete", "delete", "Delete instances and snapshots", ("rm",)),
        Entry("exec", "execute", "Execute commands in instances"),
        Entry("file", "file", "Manage files in instances"),
        Entry("image", "image", "Manage images"),
        Entry("info", "info", "Show instance or server information"),
        Entry("init", "create:INIT", "Create instances from images"),
        Entry("launch", "create:LAUNCH", "Create and start instances from images"),
        Entry("list", "instances", "List instances", ("ls",)),
        Entry("monitor", "monitor", "Monitor a local or remote server"),
        Entry("move", "copy:MOVE", "Move or rename instances, or rename snapshots", ("mv",)),
        Entry("network", "network", "Manage and attach instances to networks"),
        Entry("operation", "operation", "List, show and delete background operations"),
        Entry("pause", "state:PAUSE", "Pause instances"),
        Entry("profile", "profile", "Manage profiles"),
        Entry("project", "project", "Manage projects"),
        Entry("publish", "publish", "Publish instances as images"),
        Entry("query", "query", "Send a raw query to the server"),
        Entry("rebuild", "rebuild", "Rebuild instances"),
        Entry("remote", "remote", "Manage the list of remote servers"),
        Entry("rename", "rename", "Rename instances and snapshots"),
        Entry("restart", "state:RESTART", "Restart instances"),
        Entry("restore", "snapshot:RESTORE", "Restore instances from snapshots"),
        Entry("snapshot", "snapshot:SNAPSHOT", "Create instance snapshots"),
        Entry("start", "state:START", "Start instances"),
        Entry("stop", "state:STOP", "Stop instances"),
        Entry("storage", "storage", "Manage storage pools and volumes"),
        Entry("top", "top", "Show what running instances use, until interrupted"),
        Entry("version", "version", "Show local and remote versions"),
        Entry("warning", "warning", "Manage warnings"),
        Entry("webui", "webui", "Open the web page"),
    ),
)


def descend(words: list[str]) -> tuple[list[Command], list[str], list[str]]:
    """Return the commands named by words, starting at `ROOT`; the flags before and between them; the rest.

    The rest starts with `--`, or with the first word that is not a command.
    """
    values = {f"--{flag.name}" for flag in GLOBAL_FLAGS if flag.kind != BOOL}
    path, flags, rest = [ROOT], list[str](), list(words)
    while rest and rest[0] != "--":
        if rest[0].startswith("-"):
            count = 2 if rest[0] in values else 1
            flags += rest[:count]
            del rest[:count]
        elif child := path[-1].child(rest[0]):
            path.append(child)
            del rest[0]
        else:
            break
    return path, flags, rest


def without_alias(words: list[str]) -> list[str]:
    """Return the words with a leading alias expanded, not recursively."""
    if not words or words[0].startswith("-") or words[0] == "alias":
        return words
    from utsuwa.client import remotes

    try:
        length, meaning = remotes.load().alias(words)
    except InvalidRequest:  # the command itself reports this, if it needs the configuration
        return words
    if not length:
        return words
    import shlex

    try:
        target = shlex.split(meaning)
    except ValueError as error:
        raise UsageError(f'The alias "{" ".join(words[:length])}" expands to {meaning!r}: {error}') from error
    rest = words[length:]
    if remotes.ARGUMENTS not in target:
        return target + rest
    return [part for word in target for part in (rest if word == remotes.ARGUMENTS else [word])]
