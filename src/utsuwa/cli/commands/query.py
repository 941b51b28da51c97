"""`utsuwa query`: send a request to the REST API."""

from __future__ import annotations

import json

from utsuwa.cli.errors import CommandFailed, UsageError
from utsuwa.cli.parsing.command import Command
from utsuwa.cli.parsing.flags import TEXT, Flag
from utsuwa.client.errors import ApiError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session


def _run(session: Session, arguments: list[str], flags: Flags) -> None:
    if session.project:
        raise UsageError("--project cannot be used with the query command: add ?project=NAME to the path")
    remote, path = session.config.split(arguments[0])
    if not path.startswith("/"):
        raise UsageError("Query path must start with /")
    server = session.server(remote)
    server.project = ""
    data = flags.text("data")
    headers = {"Content-Type": "application/json"} if data else {}
    body = data.encode("utf-8", "surrogateescape") if data else None
    reply = server.raw(flags.text("request"), path, body, headers)
    content = reply.read()
    try:
        envelope = json.loads(content)
        assert isinstance(envelope, dict)
    except (ValueError, AssertionError):
        session.write(content.decode("utf-8", "surrogateescape"))
        if reply.status >= 400:
            raise CommandFailed(f"The server responded with status {reply.status}") from None
        return
    if flags.on("wait") and envelope.get("type") == "async":
        envelope = server.envelope("GET", f"{envelope['operation']}/wait")
    _print(session, envelope, raw=flags.on("raw"))


def _print(session: Session, envelope: dict[str, Any], *, raw: bool) -> None:
    """Print the envelope (`raw`), or its metadata. Raises ApiError if it is an error."""
    if raw:
        session.write(_indented(envelope))
        return
    if envelope.get("type") == "error":
        raise ApiError(envelope.get("error") or "", envelope.get("error_code") or 0)
    metadata = envelope.get("metadata")
    if isinstance(metadata, str):
        session.write(metadata + "\n")
    elif metadata:
        session.write(_indented(metadata))


def _indented(value: Any) -> str:
    return json.dumps(value, indent="\t", ensure_ascii=False) + "\n\n"


COMMAND = Command(
    "query",
    "Send a raw query to the server",
    _run,
    args="[<remote>:]<path>",
    flags=(
        Flag("data", "Input data", "d", kind=TEXT),
        Flag("raw", "Print the raw response"),
        Flag(
            "request",
            "Action",
            "X",
            kind=TEXT,
            default="GET",
            complete=("GET", "PUT", "POST", "PATCH", "DELETE"),
        ),
        Flag("wait", "Wait for the operation to complete"),
    ),
    example=("utsuwa query -X DELETE --wait /1.0/instances/web", "Delete the instance web."),
)
