"""The servers of remotes: daemons over a unix socket or HTTPS, and image servers."""

from __future__ import annotations

import os

from utsuwa.client import lean
from utsuwa.client.http import open_unix
from utsuwa.client.server import Server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.client.http import Opener
    from utsuwa.client.remotes import ClientConfig, Remote
    from utsuwa.client.server import Trace


def socket_path() -> str:
    """Return `$UTSUWA_SOCKET`, or the socket in `$UTSUWA_DIR`, or that in `/var/lib/utsuwa`."""
    configured = os.environ.get("UTSUWA_SOCKET")
    return configured or (os.environ.get("UTSUWA_DIR") or "/var/lib/utsuwa") + "/unix.socket"


def connect(config: ClientConfig, name: str, *, project: str = "", trace: Trace | None = None) -> Server:
    """Return a remote's server, not connected yet. Raises NotFound."""
    remote = config.remote(name)
    if remote.protocol == "simplestreams":
        from utsuwa.client.https import public_opener
        from utsuwa.client.image_server import ImageServer

        return ImageServer(remote.addr, public_opener, config.keyring, trace=trace)
    opener, host = _opener(config, name, remote)
    return Server(opener, host, project=project or remote.project, trace=trace)


def _opener(config: ClientConfig, name: str, remote: Remote) -> tuple[Opener, str]:
    if remote.is_unix:
        path = remote.addr.removeprefix("unix:").removeprefix("//") or socket_path()

        def open_local() -> lean.Socket:
            return open_unix(path)

        return open_local, "utsuwa"
    from utsuwa.client.https import opener

    return opener(config, name, remote), remote.addr.split("//", 1)[-1]
