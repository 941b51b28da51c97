"""The source of a new instance or of a copied image."""

from __future__ import annotations

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
    source = _pull(remote.addr, "lxd") | {"fingerprint": found}
    if not remote.public:
        info = server.get("/1.0")
        source["certificate"] = info["environment"]["certificate"]
        operation = server.post(path_to("images", found, "secret"), {})
        source["secret"] = operation["metadata"]["secret"]
    return source


def _pull(address: str, protocol: str) -> dict[str, Any]:
    return {"type": "image", "mode": "pull", "server": address, "protocol": protocol}
