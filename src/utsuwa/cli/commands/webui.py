"""`utsuwa webui`."""

from __future__ import annotations

import os
import time

from utsuwa.cli.errors import UsageError
from utsuwa.cli.parsing.command import Command
from utsuwa.cli.parsing.flags import Flag
from utsuwa.client.errors import ApiError
from utsuwa.client.server import path_to
from utsuwa.core.errors import InvalidRequest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session
    from utsuwa.client.server import Server

_PATIENCE = 60.0
"""Seconds to wait for the browser to use the token."""
_PAUSE = 0.3
_REDIRECT = """\
<!doctype html>
<html><head><meta charset="utf-8"><meta name="referrer" content="no-referrer">
<meta http-equiv="refresh" content="0;url={url}"><title>Utsuwa</title></head>
<body><a href="{url}">Utsuwa</a></body></html>
"""


def _run(session: Session, arguments: list[str], flags: Flags) -> None:
    server, rest = session.takes_remote(arguments)
    if rest:
        raise UsageError("Give a remote with its colon, such as host:")
    name = session.config.split(arguments[0])[0] if arguments else session.config.default
    remote = session.config.remote(name)
    local = remote.is_unix and not flags.on("https")
    token = server.post("/1.0/web/tokens", {"local": local})
    url = token["url"] if local else f"{_https_address(server, remote.addr)}/ui/#token={token['secret']}"
    if flags.on("url") or not _has_browser():
        session.write(f"{url}\n")
        session.say("This address signs in once, within five minutes.")
        return
    session.say("Opening the page in a browser; if none appears, use `utsuwa webui --url`.")
    _open(server, token, url)


def _https_address(server: Server, addr: str) -> str:
    """Return `https://host:port` of a server. Raises InvalidRequest if it has none."""
    if addr.startswith("https:"):
        return addr
    addresses = server.get("/1.0")["environment"]["addresses"]
    if not addresses:
        raise InvalidRequest(
            "The server is not on the network: set core.https_address first, or omit --https"
        )
    return f"https://{addresses[0]}"


def _has_browser() -> bool:
    import webbrowser

    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or os.environ.get("BROWSER")):
        return False
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True


def _open(server: Server, token: dict[str, Any], url: str) -> None:
    """Open the address in a browser by way of a file that nobody else can read.

    The arguments of processes are visible to all users of this host, and whoever is first to use the token
    has the session. The file is in the home directory, as browsers in packages of their own see no other.
    """
    import tempfile
    import webbrowser

    descriptor, path = tempfile.mkstemp(".html", "utsuwa-webui-", os.path.expanduser("~"))
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(_REDIRECT.format(url=url))
        webbrowser.open(f"file://{path}")
        _wait_until_used(server, token["id"])
    finally:
        os.unlink(path)


def _wait_until_used(server: Server, token: str) -> None:
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        try:
            server.get(path_to("web", "tokens", token))
        except ApiError as error:
            if error.code == 404:
                return
            raise
        time.sleep(_PAUSE)
    raise InvalidRequest("The browser has not opened the page: use `utsuwa webui --url`")


COMMAND = Command(
    "webui",
    "Open the web page",
    _run,
    args="[<remote>:]",
    flags=(
        Flag("url", "Print the address, which signs in once, instead of opening a browser"),
        Flag("https", "Use the HTTPS address of the local server, as for a browser on another host"),
    ),
    details="The page manages the server in a browser, with the rights of this client. The local server"
    " serves it on a loopback address, under a random name; other servers on their HTTPS address. Without a"
    " graphical session, the address is printed. A session ends after eight hours.",
    complete=("remotes",),
    example=("utsuwa webui", "Open the page of the default remote."),
)
