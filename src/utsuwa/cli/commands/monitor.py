"""`utsuwa monitor`: events of a server."""

from __future__ import annotations

import json
import sys

from utsuwa.cli.errors import CommandFailed, UsageError
from utsuwa.cli.output.records import arrange
from utsuwa.cli.output.render import to_json
from utsuwa.cli.parsing.command import Command
from utsuwa.cli.parsing.flags import MANY, TEXT, Flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session

_FORMATS = ("json", "pretty", "yaml")
_TYPES = ("lifecycle", "logging", "operation")
_LEVELS = ("trace", "debug", "info", "warning", "error")
_TEXT = 1


def _run(session: Session, arguments: list[str], flags: Flags) -> None:
    style = "pretty" if flags.on("pretty") else flags.text("format")
    level = flags.text("loglevel")
    if level and style != "pretty":
        raise UsageError("--loglevel can only be used with the pretty format")
    if level and level not in _LEVELS:
        raise UsageError(f"Unknown level {level!r}: use one of {', '.join(_LEVELS)}")
    server, _ = session.takes_remote(arguments)
    types = flags.many("type") or (["logging"] if level else [])
    events = server.listen(types, all_projects=flags.on("all-projects"))
    while (message := events.receive()) is not None:
        if message[0] == _TEXT:
            event = json.loads(message[1])
            if not level or _is_worth(event, level):
                session.write(_render(event, style))
                sys.stdout.flush()
    raise CommandFailed("The server closed the event stream")


def _is_worth(event: dict[str, Any], level: str) -> bool:
    """Return whether a log message has at least this level; True for other events."""
    if event["type"] != "logging":
        return True
    found = event["metadata"].get("level", "info")
    return found not in _LEVELS or _LEVELS.index(found) >= _LEVELS.index(level)


def _render(event: dict[str, Any], style: str) -> str:
    if style == "json":
        return to_json(event) + "\n"
    if style == "pretty":
        return _pretty(event) + "\n"
    from utsuwa.cli.output import yaml_out

    return yaml_out.dump(arrange(event, "event")) + "\n\n"


def _pretty(event: dict[str, Any]) -> str:
    """Format an event as a line: time, level and message."""
    metadata = event["metadata"]
    level, text = "info", ""
    more: dict[str, Any] = {}
    if event["type"] == "logging":
        level, text = metadata.get("level", "info"), metadata.get("message", "")
        more = metadata.get("context") or {}
    elif event["type"] == "lifecycle":
        text = f"Action: {metadata['action']}, Source: {metadata['source']}"
        more = metadata.get("context") or {}
    else:
        text = f"ID: {metadata['id']}, Class: {metadata['class']}, Description: {metadata['description']}"
        more = {"status": metadata["status"]} | ({"err": metadata["err"]} if metadata["err"] else {})
    fields = "".join(f" {key}={json.dumps(value)}" for key, value in more.items())
    return f"{level.upper():7} [{event['timestamp']}] {text}{fields}"


COMMAND = Command(
    "monitor",
    "Monitor a local or remote server",
    _run,
    args="[<remote>:]",
    flags=(
        Flag("all-projects", "Show events from all projects"),
        Flag("format", "Format (json|pretty|yaml)", "f", kind=TEXT, default="yaml", complete=_FORMATS),
        Flag("loglevel", "Minimum level for log messages (pretty format)", kind=TEXT, complete=_LEVELS),
        Flag("pretty", "Pretty rendering (short for --format=pretty)"),
        Flag("type", "Event type to listen for", kind=MANY, complete=_TYPES),
    ),
    example=("utsuwa monitor --pretty --type=lifecycle", "Show one line per lifecycle event."),
)
