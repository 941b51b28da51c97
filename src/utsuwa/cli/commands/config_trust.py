"""`utsuwa config trust`: the certificates that the server trusts."""

from __future__ import annotations

import base64
import sys

from utsuwa.cli.commands import config_trust_tokens, objects
from utsuwa.cli.errors import CommandFailed, UsageError
from utsuwa.cli.output.render import show_list, show_yaml
from utsuwa.cli.parsing.command import Command, format_flag
from utsuwa.cli.parsing.flags import BOOL, TEXT, Flag
from utsuwa.client.server import path_to

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import datetime
    from typing import Any

    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session

_TYPES = ("client", "metrics")
_NOUN = objects.Noun(
    "trust",
    "certificates",
    kind="certificate-settings",
    fields=("name", "type", "restricted", "projects", "certificate"),
    members="certificates",
    argument="fingerprint",
    sample="5ae1c5b4c7d8",
)
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


def _list(session: Session, arguments: list[str], flags: Flags) -> None:
    server, _ = session.takes_remote(arguments)
    found = server.get("/1.0/certificates", recursion="1")
    style = flags.text("format")
    if style not in ("json", "yaml"):
        found = [record | _read(record["certificate"]) for record in found]
    show_list(
        session,
        style,
        [
            ("TYPE", lambda c: c["type"]),
            ("NAME", lambda c: c["name"]),
            ("COMMON NAME", lambda c: c["common_name"]),
            ("FINGERPRINT", lambda c: c["fingerprint"][:12]),
            ("ISSUE DATE", lambda c: c["issued"]),
            ("EXPIRY DATE", lambda c: c["expires"]),
        ],
        found,
        "certificate",
    )


def _read(pem: str) -> dict[str, str]:
    """Return a certificate's subject and validity for display."""
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    certificate = x509.load_pem_x509_certificate(pem.encode())
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return {
        "common_name": str(names[0].value) if names else "",
        "issued": _date(certificate.not_valid_before_utc),
        "expires": _date(certificate.not_valid_after_utc),
    }


def _date(time: datetime) -> str:
    from utsuwa.cli.output.values import clock

    return clock(time.astimezone())


def _show(session: Session, arguments: list[str], _flags: Flags) -> None:
    server, name = session.target(arguments[0])
    show_yaml(session, server.get(path_to("certificates", name)), "certificate")


def _add(session: Session, arguments: list[str], flags: Flags) -> None:
    kind = flags.text("type")
    if kind not in _TYPES:
        raise UsageError(f"Unknown certificate type {kind!r}: use one of {', '.join(_TYPES)}")
    server, rest = session.takes_remote(arguments[:1])
    files = rest + arguments[1:]
    body: dict[str, Any] = {"type": kind, "restricted": flags.on("restricted")}
    if flags.given("projects"):
        body["projects"] = [project for project in flags.text("projects").split(",") if project]
    if not files:
        if kind != "client":
            raise UsageError(f"Certificates of the type {kind} cannot be added by a token: name the file")
        config_trust_tokens.issue(session, server, {**body, "name": flags.text("name") or _ask_name()})
        return
    name = flags.text("name") or files[0].rsplit("/", 1)[-1]
    server.post("/1.0/certificates", {**body, "name": name, "certificate": _file(files[0])})


def _ask_name() -> str:
    sys.stderr.write("Please provide client name: ")
    sys.stderr.flush()
    name = sys.stdin.readline().strip()
    if not name:
        raise UsageError("Give the client a name (--name)")
    return name


def _file(path: str) -> str:
    """Return the certificate of a PEM file as base64 of DER, as in the API. Raises CommandFailed."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        body = text.partition(_BEGIN)[2].partition(_END)[0]
        der = base64.b64decode("".join(body.split()), validate=True)
    except (OSError, ValueError) as error:
        raise CommandFailed(f"Cannot read the certificate {path}: {error}") from error
    if not der:
        raise CommandFailed(f"{path} does not contain a PEM certificate")
    return base64.b64encode(der).decode()


def _remove(session: Session, arguments: list[str], _flags: Flags) -> None:
    server, name = session.target(arguments[0])
    server.delete(path_to("certificates", name))


COMMAND = Command(
    "trust",
    "Manage trusted clients",
    children=(
        Command(
            "add",
            "Add new trusted client",
            _add,
            args="[<remote>:] [<cert>]",
            flags=(
                Flag("name", "Alternative certificate name", kind=TEXT),
                Flag("projects", "Projects to restrict the certificate to, split by commas", kind=TEXT),
                Flag("restricted", "Restrict the certificate to one or more projects", kind=BOOL),
                Flag("type", "Type of certificate", kind=TEXT, default="client", complete=_TYPES),
            ),
            details="""\
Without a certificate, a token is printed, with which one client can add its own (`utsuwa remote add NAME
TOKEN`). Certificates of the type metrics give access to metrics only.""",
            example=(
                "utsuwa config trust add --name ann",
                "Print a token with which Ann can add herself.",
            ),
        ),
        objects.edit(_NOUN),
        Command(
            "list",
            "List trusted clients",
            _list,
            args="[<remote>:]",
            flags=(format_flag(),),
            aliases=("ls",),
            example=("utsuwa config trust list", "List the clients that may use this server over HTTPS."),
        ),
        config_trust_tokens.LIST,
        Command(
            "remove",
            "Remove trusted client",
            _remove,
            args="[<remote>:]<fingerprint>",
            aliases=("rm",),
            complete=("certificates",),
            example=("utsuwa config trust remove 5ae1c5b4c7d8", "Remove a client by fingerprint prefix."),
        ),
        config_trust_tokens.REVOKE,
        Command(
            "show",
            "Show trust configurations",
            _show,
            args="[<remote>:]<fingerprint>",
            complete=("certificates",),
            example=("utsuwa config trust show 5ae1c5b4c7d8", "Show a client and its certificate."),
        ),
    ),
)
