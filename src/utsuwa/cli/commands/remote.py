"""`utsuwa remote`: the servers known to this client."""

from __future__ import annotations

from utsuwa.cli.output.render import show_list, to_json, unsorted
from utsuwa.cli.parsing.command import Command, Entry, format_flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session
    from utsuwa.client.remotes import Remote


def _list(session: Session, _arguments: list[str], flags: Flags) -> None:
    config = session.config
    style = flags.text("format")
    remotes = dict(sorted(config.remotes.items()))
    if style == "json":
        session.write(to_json({name: _go_record(remote) for name, remote in remotes.items()}) + "\n")
        return
    if style == "yaml":
        from utsuwa.cli.output import yaml_out

        session.write(yaml_out.dump({name: remote.record() for name, remote in remotes.items()}))
        return
    show_list(
        session,
        style,
        [
            ("NAME", lambda r: r["name"]),
            ("URL", lambda r: r["addr"]),
            ("PROTOCOL", lambda r: r["protocol"]),
            ("AUTH TYPE", lambda r: r["auth"]),
            ("PUBLIC", lambda r: r["public"]),
            ("STATIC", lambda r: r["static"]),
            ("GLOBAL", lambda r: "NO"),
        ],
        [_row(name, remote, config.default) for name, remote in remotes.items()],
        "",
        order=unsorted,
    )


def _row(name: str, remote: Remote, default: str) -> dict[str, str]:
    if remote.is_unix:
        auth = "file access"
    elif remote.protocol == "simplestreams":
        auth = "none"
    else:
        auth = remote.auth_type or "tls"
    return {
        "name": f"{name} (current)" if name == default else name,
        "addr": remote.addr,
        "protocol": remote.protocol,
        "auth": auth,
        "public": "YES" if remote.public else "NO",
        "static": "YES" if remote.static else "NO",
    }


def _go_record(remote: Remote) -> dict[str, Any]:
    return {
        "Addr": remote.addr,
        "AuthType": remote.auth_type,
        "Domain": "",
        "Project": remote.project,
        "Protocol": remote.protocol,
        "Public": remote.public,
        "Global": False,
        "Static": remote.static,
    }


def _remove(session: Session, arguments: list[str], _flags: Flags) -> None:
    session.config.remove(arguments[0])
    session.config.save()


def _rename(session: Session, arguments: list[str], _flags: Flags) -> None:
    session.config.rename(arguments[0], arguments[1])
    session.config.save()


def _switch(session: Session, arguments: list[str], _flags: Flags) -> None:
    session.config.remote(arguments[0])
    session.config.default = arguments[0]
    session.config.save()


def _get_default(session: Session, _arguments: list[str], _flags: Flags) -> None:
    session.write(f"{session.config.default}\n")


def _get_url(session: Session, arguments: list[str], _flags: Flags) -> None:
    session.write(f"{session.config.remote(arguments[0]).addr}\n")


def _get_client_certificate(session: Session, _arguments: list[str], _flags: Flags) -> None:
    from utsuwa.client import keypair

    keypair.ensure(session.config)
    with open(session.config.client_certificate, encoding="ascii") as file:
        session.write(file.read())


def _get_client_token(session: Session, arguments: list[str], _flags: Flags) -> None:
    from utsuwa.client import bearer, keypair

    seconds = bearer.parse_duration(arguments[0])
    keypair.ensure(session.config)
    session.write(bearer.sign(session.config, seconds) + "\n")


def _set_url(session: Session, arguments: list[str], _flags: Flags) -> None:
    from utsuwa.client.https import normal_address

    remote = session.config.changeable(arguments[0])
    is_images = remote.protocol == "simplestreams"
    remote.addr = arguments[1] if is_images else normal_address(arguments[1])
    session.config.save()


_ONE = ("remotes",)

COMMAND = Command(
    "remote",
    "Manage the list of remote servers",
    children=(
        Entry("add", "remote_add:ADD", "Add new remote servers"),
        Command(
            "get-client-certificate",
            "Show the client certificate",
            _get_client_certificate,
            details="It is generated if there is none. On a server, `utsuwa config trust add` takes it.",
            example=("utsuwa remote get-client-certificate", "Show the certificate for `config trust add`."),
        ),
        Command(
            "get-client-token",
            "Generate a client token derived from the client certificate",
            _get_client_token,
            args="<expiry>",
            details="""\
Until it expires, the token grants whoever has it what servers grant to this client's certificate. It is
passed in the header `Authorization: Bearer TOKEN`. A server that gets it can use it on all others that trust
this client.""",
            example=("utsuwa remote get-client-token 10m", "Print a token that is valid for ten minutes."),
        ),
        Command(
            "get-default",
            "Show the default remote",
            _get_default,
            example=("utsuwa remote get-default", "Show the remote used for names without one."),
        ),
        Command(
            "get-url",
            "Show the URL of a remote",
            _get_url,
            args="<remote>",
            complete=_ONE,
            example=("utsuwa remote get-url far", "Show the URL of this remote."),
        ),
        Entry("import-lxc", "remote_add:IMPORT", "Import the remotes of the lxc client"),
        Command(
            "list",
            "List the available remotes",
            _list,
            flags=(format_flag(),),
            aliases=("ls",),
            example=("utsuwa remote list", "List all servers known to this client."),
        ),
        Command(
            "remove",
            "Remove remotes",
            _remove,
            args="<remote>",
            aliases=("rm",),
            complete=_ONE,
            example=("utsuwa remote remove far", "Remove the server and its certificate."),
        ),
        Command(
            "rename",
            "Rename remotes",
            _rename,
            args="<remote> <new-name>",
            aliases=("mv",),
            complete=("remotes", ()),
            example=("utsuwa remote rename far away", "Use another name for the server."),
        ),
        Command(
            "set-url",
            "Set the URL for the remote",
            _set_url,
            args="<remote> <URL>",
            complete=("remotes", ()),
            example=("utsuwa remote set-url far https://far.example:8443", "Change the URL of a server."),
        ),
        Command(
            "switch",
            "Switch the default remote",
            _switch,
            args="<remote>",
            aliases=("set-default",),
            complete=_ONE,
            example=("utsuwa remote switch far", "Use far for names without a remote."),
        ),
    ),
)
