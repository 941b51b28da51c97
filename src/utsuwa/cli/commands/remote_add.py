"""`utsuwa remote add` and `utsuwa remote import-lxc`."""

from __future__ import annotations

import os
import shutil
import sys

from utsuwa.cli.errors import CommandFailed, UsageError
from utsuwa.cli.parsing.command import Command
from utsuwa.cli.parsing.flags import BOOL, TEXT, Flag
from utsuwa.client import https, join_token, keypair, remotes
from utsuwa.client.connect import connect
from utsuwa.client.server import path_to
from utsuwa.core.errors import UtsuwaError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session
    from utsuwa.client.join_token import JoinToken
    from utsuwa.client.remotes import ClientConfig, Remote
    from utsuwa.client.server import Server

_PROTOCOLS = ("lxd", "simplestreams")
_TOKEN_SECONDS = 5
"""Seconds for one of the addresses in a token, most of which may be unreachable."""


def _add(session: Session, arguments: list[str], flags: Flags) -> None:
    """Add a remote, if the server responds and trusts the client."""
    config, address = session.config, arguments[-1]
    token = join_token.parse(address)
    if token is not None and len(arguments) == 1:
        raise UsageError("Give the remote a name: utsuwa remote add NAME TOKEN")
    name = arguments[0] if len(arguments) > 1 else address.split("://")[-1].split("/")[0].split(":")[0]
    config.check_new_name(name)
    try:
        if token is not None:
            _add_by_token(session, name, token, flags)
        else:
            remote = _described(address, flags)
            config.add(name, remote)
            if remote.protocol == "lxd" and not remote.is_unix:
                _make_trusted(session, name, remote, flags)
    except BaseException:
        _forget(config, name)
        raise
    config.save()


def _add_by_token(session: Session, name: str, token: JoinToken, flags: Flags) -> None:
    """Try the addresses in a token until the server that has issued it is found."""
    for address in token.addresses:
        try:
            certificate = https.server_certificate(https.normal_address(address), _TOKEN_SECONDS)
        except UtsuwaError as error:
            session.warn(f"{error}")
            continue
        if https.fingerprint(certificate) == token.fingerprint:
            _join(session, name, https.normal_address(address), str(token), flags)
            return
        session.warn(f"{address} is not the server that has issued the token: its certificate differs")
    sys.stderr.write("The server cannot be reached at the token's addresses.\n")
    sys.stderr.write("Please provide an alternate server address (empty to abort): ")
    sys.stderr.flush()
    address = sys.stdin.readline().strip()
    if not address:
        raise CommandFailed("No address of the server that has issued the token can be reached")
    _check_issuer(https.server_certificate(https.normal_address(address)), address, token)
    _join(session, name, https.normal_address(address), str(token), flags)


def _check_issuer(certificate: bytes, address: str, token: JoinToken) -> None:
    if https.fingerprint(certificate) != token.fingerprint:
        raise CommandFailed(
            f"{address} is not the server that has issued the token: its certificate differs from the one in "
            "the token; ask the server's administrator for a new token"
        )


def _join(session: Session, name: str, address: str, token: str, flags: Flags) -> None:
    """Add the server of a token, whose certificate the token confirms."""
    remote = remotes.Remote(address, auth_type="tls", project=flags.text("project"))
    session.config.add(name, remote)
    _make_trusted(session, name, remote, flags, token)


def _described(address: str, flags: Flags) -> Remote:
    protocol = flags.text("protocol") or "lxd"
    if protocol not in _PROTOCOLS:
        raise UsageError(f"Unknown protocol {protocol!r}: use one of {', '.join(_PROTOCOLS)}")
    if flags.text("auth-type") not in ("", "tls"):
        raise UsageError(f"Unknown type of authentication {flags.text('auth-type')!r}: use tls")
    if protocol == "simplestreams":
        if not address.startswith("https://"):
            raise UsageError("The URL of an image server must start with https://")
        return remotes.Remote(address, protocol, public=True)
    found = https.normal_address(address)
    auth = "" if found.startswith("unix:") else "tls"
    project = flags.text("project")
    return remotes.Remote(found, protocol, public=flags.on("public"), auth_type=auth, project=project)


def _make_trusted(session: Session, name: str, remote: Remote, flags: Flags, token: str = "") -> None:
    """Accept the server's certificate and have the client's trusted. Raises CommandFailed or ApiError."""
    config = session.config
    token = token or flags.text("token")
    _accept(session, name, remote, flags, token)
    if remote.public:
        return
    if keypair.ensure(config):
        session.say(f"Generated a certificate for this client: {config.client_certificate}")
    far = connect(config, name)
    if far.get("/1.0")["auth"] != "trusted":
        secret = token or (flags.text("password") if flags.given("password") else _ask_password(name))
        proof = {"password": secret} | ({"trust_token": token} if token else {})  # Incus reads the second
        far.post("/1.0/certificates", {"type": "client", **proof})
        if far.get("/1.0")["auth"] != "trusted":
            raise CommandFailed("The server doesn't trust us after authentication")
        session.say(f"Client certificate now trusted by server: {name}")
    remote.project = _project(session, far, remote.project)


def _project(session: Session, far: Server, wanted: str) -> str:
    """Return the project for names on the remote; empty for the default one. Raises CommandFailed."""
    if wanted:
        far.get(path_to("projects", wanted))
        return wanted
    if not far.has("projects"):
        return ""
    found: list[str] = [url.rsplit("/", 1)[-1] for url in far.get("/1.0/projects")]
    if not found or "default" in found:
        return ""
    if len(found) == 1:
        return found[0]
    session.write("Available projects:\n" + "".join(f" - {project}\n" for project in found))
    sys.stdout.write("Name of the project to use for this remote: ")
    sys.stdout.flush()
    answer = sys.stdin.readline().strip()
    if answer not in found:
        raise CommandFailed(f"{answer!r} is none of these projects: choose one with --project")
    return answer


def _accept(session: Session, name: str, remote: Remote, flags: Flags, token: str) -> None:
    """Pin the server's certificate, unless it is trusted anyway: a token confirms it, or the user."""
    config = session.config
    certificate = https.server_certificate(remote.addr)
    if token:
        parsed = join_token.parse(token)
        if parsed is None:
            raise UsageError("The token is not valid: pass all of it, without line breaks")
        _check_issuer(certificate, remote.addr, parsed)
    elif not flags.on("accept-certificate"):
        if https.is_trusted(config, remote.addr):
            return
        session.write(f"Certificate fingerprint: {https.fingerprint(certificate)}\n")
        _confirm(https.fingerprint(certificate))
    config.write(f"servercerts/{name}.crt", https.to_pem(certificate))


def _confirm(fingerprint: str) -> None:
    """Ask for confirmation: yes, or the fingerprint itself. Raises CommandFailed."""
    sys.stdout.write("ok (y/n/[fingerprint])? ")
    sys.stdout.flush()
    answer = sys.stdin.readline().strip()
    if answer.lower() not in ("y", "yes") and answer != fingerprint:
        raise CommandFailed("Server certificate NACKed by user")


def _ask_password(name: str) -> str:
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\n")
    from getpass import getpass

    return getpass(f"Admin password (or token) for {name}: ")


def _forget(config: ClientConfig, name: str) -> None:
    if os.path.exists(config.server_certificate(name)):
        os.unlink(config.server_certificate(name))


def _import(session: Session, arguments: list[str], _flags: Flags) -> None:
    """Import missing remotes and their certificates, and the client certificate if missing."""
    folder = arguments[0] if arguments else _lxc_folder()
    if not os.path.exists(f"{folder}/config.yml"):
        raise CommandFailed(f"{folder}/config.yml does not exist: specify the lxc client's directory")
    config, found = session.config, remotes.load(folder)
    taken = []
    for name, remote in found.remotes.items():
        if name in config.remotes or remote.static:
            continue
        config.add(name, remote)
        if os.path.exists(found.server_certificate(name)):
            with open(found.server_certificate(name), encoding="ascii") as file:
                config.write(f"servercerts/{name}.crt", file.read())
        taken.append(name)
    own = (config.client_certificate, config.client_key)
    theirs = (found.client_certificate, found.client_key)
    if not any(map(os.path.exists, own)) and all(map(os.path.exists, theirs)):
        os.makedirs(config.folder, mode=0o750, exist_ok=True)
        for source, target in zip(theirs, own, strict=True):
            shutil.copyfile(source, target)
            os.chmod(target, 0o600)
        session.say("Imported the client certificate")
    config.save()
    for name in taken:
        session.say(f"Remote {name} added: {config.remotes[name].addr}")
    if not taken:
        session.say("No new remotes found")


def _lxc_folder() -> str:
    return os.environ.get("LXD_CONF") or os.path.expanduser("~/.config/lxc")


ADD = Command(
    "add",
    "Add new remote servers",
    _add,
    args="[<remote>] <address|token>",
    flags=(
        Flag("accept-certificate", "Accept the server's certificate without confirmation", kind=BOOL),
        Flag("auth-type", "Server authentication type (tls)", kind=TEXT),
        Flag("password", "The server's trust password", kind=TEXT),
        Flag("protocol", "Server protocol (lxd or simplestreams)", kind=TEXT, complete=_PROTOCOLS),
        Flag("public", "Public image server"),
        Flag("token", "Token of `utsuwa config trust add`, which confirms the server as well", kind=TEXT),
    ),
    details="""\
A token contains the server's addresses: `utsuwa remote add NAME TOKEN`. If the server has another address for
this client (behind NAT, for example), name it and pass the token by --token. A client that is restricted to
projects uses the only one, or asks which.""",
    example=(
        "utsuwa remote add far https://far.example:8443",
        "Show the server's fingerprint, then ask for a token or its trust password.",
    ),
)
IMPORT = Command(
    "import-lxc",
    "Import the remotes of the lxc client",
    _import,
    args="[<folder>]",
    details="""\
Existing remotes are not changed. The directory defaults to $LXD_CONF or ~/.config/lxc. Alternatively,
UTSUWA_CONF may be set to that directory, as the format is the same.""",
    example=("utsuwa remote import-lxc ~/snap/lxd/common/config", "Import from the snap's directory."),
)
