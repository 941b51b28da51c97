"""The source of a new instance or of a copied image."""

from __future__ import annotations

from utsuwa.cli.errors import CommandFailed
from utsuwa.client.errors import ApiError
from utsuwa.client.server import path_to

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from utsuwa.cli.session import Session
    from utsuwa.client.server import Server


def fingerprint(server: Server, name: str) -> str:
    """Return the target of an image alias, or the name itself if it is a fingerprint or a prefix of one."""
    try:
        return str(server.get(path_to("images", "aliases", name))["target"])
    except ApiError as error:
        if error.code != 404:
            raise
        return name


def image(session: Session, text: str, target: Server) -> dict[str, Any]:
    """Return the `source` for creating an instance from the image `[remote:]name` on the server `target`."""
    remote_name, name = session.config.split(text)
    remote = session.config.remote(remote_name)
    if remote.protocol == "simplestreams":
        return _pull(remote.addr, remote.protocol) | {"alias": name or "default"}
    server = session.server(remote_name)
    found = fingerprint(server, name or "default")
    if server is target:
        return {"type": "image", "fingerprint": found}
    address, certificate = reachable(session, remote_name)
    source = _pull(address, "lxd") | {"fingerprint": found, "certificate": certificate}
    source["project"] = server.project
    if not remote.public:
        operation = server.post(path_to("images", found, "secret"), {})
        source["secret"] = operation["metadata"]["secret"]
    return source


def reachable(session: Session, remote: str) -> tuple[str, str]:
    """Return a server's URL and certificate, for another server. Raises CommandFailed.

    A public server does not tell strangers its certificate: then it is that which was accepted.
    """
    environment = session.server(remote).get("/1.0").get("environment") or {}
    known = session.config.remote(remote)
    addresses: list[str] = environment.get("addresses") or []
    if known.is_unix and not addresses:
        raise CommandFailed(
            f"The server {remote!r} isn't listening on the network: set its core.https_address, "
            "or copy the image with --mode relay"
        )
    certificate = environment.get("certificate") or _accepted(session.config.server_certificate(remote))
    return f"https://{addresses[0]}" if known.is_unix else known.addr, certificate


def _accepted(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except (OSError, ValueError):
        return ""


def _pull(address: str, protocol: str) -> dict[str, Any]:
    return {"type": "image", "mode": "pull", "server": address, "protocol": protocol}
