"""Tokens of `utsuwa config trust`, with which new clients add themselves."""

from __future__ import annotations

from utsuwa.cli.errors import CommandFailed, UsageError
from utsuwa.cli.output import values
from utsuwa.cli.output.render import show_list
from utsuwa.cli.parsing.command import Command, format_flag
from utsuwa.client import join_token
from utsuwa.client.server import path_to

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session
    from utsuwa.client.server import Server


def issue(session: Session, server: Server, body: dict[str, Any]) -> None:
    """Have a token issued and print it."""
    operation = server.post("/1.0/certificates", {**body, "token": True})
    token = join_token.of_operation(operation)
    if token is None:
        raise CommandFailed("The server did not return a token")
    session.say(f"Client {token.name} certificate add token:")
    session.write(f"{token}\n")


def _tokens(server: Server) -> list[tuple[str, join_token.JoinToken]]:
    """Return the ids of operations and their tokens."""
    groups = server.get("/1.0/operations", recursion="1", project="default") or {}
    found = [(o["id"], join_token.of_operation(o)) for group in groups.values() for o in group]
    return [(identifier, token) for identifier, token in found if token is not None]


def _list(session: Session, arguments: list[str], flags: Flags) -> None:
    server, _ = session.takes_remote(arguments)
    records = [
        {
            "ClientName": token.name,
            "Token": str(token),
            "ExpiresAt": values.minute(token.expires_at),
        }
        for _, token in _tokens(server)
    ]
    show_list(
        session,
        flags.text("format"),
        [
            ("NAME", lambda t: t["ClientName"]),
            ("TOKEN", lambda t: t["Token"]),
            ("EXPIRES AT", lambda t: t["ExpiresAt"]),
        ],
        records,
        "token",
    )


def _revoke(session: Session, arguments: list[str], _flags: Flags) -> None:
    server, name = session.target(arguments[0])
    if not name:
        raise UsageError("Name the client of the token: `utsuwa config trust list-tokens` lists them")
    found = [identifier for identifier, token in _tokens(server) if token.name == name]
    if not found:
        raise CommandFailed(f"No certificate add token for {name}: see `utsuwa config trust list-tokens`")
    server.delete(path_to("operations", found[0]))
    session.say(f"Certificate add token for {name} deleted")


LIST = Command(
    "list-tokens",
    "List all active certificate add tokens",
    _list,
    args="[<remote>:]",
    flags=(format_flag(),),
    example=("utsuwa config trust list-tokens", "List the tokens that clients have not used yet."),
)
REVOKE = Command(
    "revoke-token",
    "Revoke certificate add token",
    _revoke,
    args="[<remote>:]<name>",
    example=("utsuwa config trust revoke-token laptop", "Prevent the token for laptop from being used."),
)
