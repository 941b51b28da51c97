"""`utsuwa remote add` and `utsuwa remote import-lxc`."""

from __future__ import annotations

import os
import shutil
import sys

from utsuwa.cli.errors import CommandFailed, UsageError
from utsuwa.cli.parsing.command import Command
from utsuwa.cli.parsing.flags import BOOL, TEXT, Flag
from utsuwa.client import https, keypair, remotes, server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session
    from utsuwa.client.remotes import ClientConfig, Remote

_PROTOCOLS = ("lxd", "simplestreams")


def _add(session: Session, arguments: list[str], flags: Flags) -> None:
    """Add a remote, if the server responds and trusts the client."""
    address = arguments[-1]
    name = arguments[0]
    config = session.config
    if len(arguments) == 1:
        name = address.split("://")[-1].split("/")[0].split(":")[0]
    config.check_new_name(name)
    remote = _described(address, flags)
    config.add(name, remote)
    if remote.protocol == "lxd" and not remote.is_unix:
        _make_trusted(session, name, remote, flags)
    config.save()


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


def _make_trusted(session: Session, name: str, remote: Remote, flags: Flags) -> None:
    """Accept the server's certificate and have the client's trusted. Raises CommandFailed or ApiError."""
    config = session.config
    _accept(session, name, remote, flags)
    if remote.public:
        return
    if keypair.ensure(config):
        session.say(f"Generated a certificate for this client: {config.client_certificate}")
    far = server.connect(config, name)
    if far.get("/1.0")["auth"] == "trusted":
        return
    password = flags.text("password") if flags.given("password") else _ask_password(name)
    far.post("/1.0/certificates", {"type": "client", "password": password})
    if far.get("/1.0")["auth"] != "trusted":
        _forget(config, name)
        raise CommandFailed("The server doesn't trust us after authentication")
    session.say(f"Client certificate now trusted by server: {name}")


def _accept(session: Session, name: str, remote: Remote, flags: Flags) -> None:
    certificate = https.server_certificate(remote.addr)
    if not flags.on("accept-certificate"):
        if https.is_trusted_by_system(remote.addr):
            return
        session.write(f"Certificate fingerprint: {https.fingerprint(certificate)}\n")
        _confirm(https.fingerprint(certificate))
    session.config.write(f"servercerts/{name}.crt", https.to_pem(certificate))


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
    args="[<remote>] <address>",
    flags=(
        Flag("accept-certificate", "Accept the server's certificate without confirmation", kind=BOOL),
        Flag("auth-type", "Server authentication type (tls)", kind=TEXT),
        Flag("password", "The server's trust password", kind=TEXT),
        Flag("protocol", "Server protocol (lxd or simplestreams)", kind=TEXT, complete=_PROTOCOLS),
        Flag("public", "Public image server"),
    ),
    example=(
        "utsuwa remote add far https://far.example:8443",
        "Show the server's fingerprint, then ask for its trust password.",
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
