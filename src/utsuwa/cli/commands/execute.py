"""`utsuwa exec`: run a command in an instance, forwarding its streams and signals."""

from __future__ import annotations

import os
import sys

from utsuwa.cli.errors import UsageError
from utsuwa.cli.parsing.command import Command
from utsuwa.cli.parsing.flags import MANY, NUMBER, TEXT, Flag
from utsuwa.client.server import path_to

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session

_MODES = ("auto", "interactive", "non-interactive")


def _run(session: Session, arguments: list[str], flags: Flags) -> int:
    from utsuwa.cli import streams

    server, name = session.target(arguments[0])
    interactive = _is_interactive(flags)
    body = {
        "command": arguments[1:],
        "wait-for-websocket": True,
        "record-output": False,
        "interactive": interactive,
        "environment": _environment(flags, interactive),
        "user": flags.number("user"),
        "group": flags.number("group"),
        "cwd": flags.text("cwd"),
        **(streams.window() if interactive else {"width": 0, "height": 0}),
    }
    operation = server.post(path_to("instances", name, "exec"), body)
    descriptors = (os.open(os.devnull, os.O_RDONLY) if flags.on("disable-stdin") else 0, 1, 2)
    if interactive:
        streams.interact(server, operation, descriptors)
    else:
        streams.pump(server, operation, descriptors)
    return _status(server.get(f"/1.0/operations/{operation['id']}/wait"))


def _is_interactive(flags: Flags) -> bool:
    """Return whether the command gets a terminal. Raises UsageError."""
    mode = flags.text("mode")
    if mode not in _MODES:
        raise UsageError(f"Unknown mode {mode!r}: use one of {', '.join(_MODES)}")
    if flags.on("force-interactive") and flags.on("force-noninteractive"):
        raise UsageError("You can't pass -t and -T at the same time")
    if (flags.on("force-interactive") or flags.on("force-noninteractive")) and flags.given("mode"):
        raise UsageError("You can't pass -t or -T at the same time as --mode")
    if flags.on("force-interactive") or mode == "interactive":
        return True
    if flags.on("force-noninteractive") or mode == "non-interactive":
        return False
    return not flags.on("disable-stdin") and os.isatty(0) and os.isatty(1)


def _environment(flags: Flags, interactive: bool) -> dict[str, str]:
    """Return the environment: `--env`, and TERM of the terminal."""
    found = {"TERM": os.environ["TERM"]} if interactive and os.environ.get("TERM") else {}
    for setting in flags.many("env"):
        name, _, value = setting.partition("=")
        found[name] = value
    return found


def _status(record: dict[str, Any]) -> int:
    """Return the exit status of the command, 127 or 126 if it could not be run. Raises ApiError."""
    from utsuwa.client.server import succeeded

    status = (record.get("metadata") or {}).get("return")
    if status is None:
        succeeded(record)
        return 1
    if record["err"]:
        sys.stderr.write(f"Error: {record['err']}\n")
    return int(status) if 0 <= int(status) < 256 else 1


COMMAND = Command(
    "exec",
    "Execute commands in instances",
    _run,
    args="[<remote>:]<instance> [--] <command> [<argument>...]",
    flags=(
        Flag("cwd", "Directory to run the command in (default /root)", kind=TEXT),
        Flag("disable-stdin", "Disable stdin (reads from /dev/null)", "n"),
        Flag("env", "Environment variable to set (e.g. HOME=/home/foo)", kind=MANY),
        Flag("force-interactive", "Force pseudo-terminal allocation", "t"),
        Flag("force-noninteractive", "Disable pseudo-terminal allocation", "T"),
        Flag("group", "Group ID to run the command as", kind=NUMBER, default="0"),
        Flag("mode", f"Terminal mode ({', '.join(_MODES)})", kind=TEXT, default="auto", complete=_MODES),
        Flag("user", "User ID to run the command as", kind=NUMBER, default="0"),
    ),
    details="""\
The command is run directly, without a shell. It gets a terminal if standard input and output are
terminals. `utsuwa exec` exits with the command's exit status.""",
    example=(
        'utsuwa exec web -- sh -c "cd /tmp && pwd"',
        "Run a shell command; everything after -- is passed to the instance.",
    ),
    complete=("running", ()),
)
