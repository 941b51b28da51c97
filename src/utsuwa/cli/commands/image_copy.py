"""`utsuwa image copy` and `utsuwa image refresh`."""

from __future__ import annotations

from utsuwa.cli import image_files, sources
from utsuwa.cli.errors import CommandFailed, UsageError
from utsuwa.cli.output import progress
from utsuwa.cli.parsing.command import Command
from utsuwa.cli.parsing.flags import MANY, TEXT, Flag
from utsuwa.client.connect import connect
from utsuwa.client.errors import ApiError
from utsuwa.client.server import path_to, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session
    from utsuwa.client.server import Server

_PULL, _PUSH, _RELAY = "pull", "push", "relay"
_MODES = (_PULL, _PUSH, _RELAY)

Aliases = dict[str, str]
"""Names and descriptions."""


def _copy(session: Session, arguments: list[str], flags: Flags) -> None:
    remote, name = session.config.split(arguments[1])
    if name:
        raise UsageError("The image keeps its fingerprint: specify a remote only, such as far:")
    mode = flags.text("mode")
    if mode not in _MODES:
        raise UsageError(f"Unknown mode {mode!r}: use one of {', '.join(_MODES)}")
    if flags.on("auto-update") and mode != _PULL:
        raise UsageError("Auto update is only available in pull mode")
    # On a separate connection: one server sends while the other receives.
    trace = session.warn if session.debug else None
    project = flags.text("target-project") or session.project
    target = connect(session.config, remote, project=project, trace=trace)
    source_remote, source_name = session.config.split(arguments[0])
    if not source_name:
        raise UsageError("Specify the image to copy")
    aliases: Aliases = dict.fromkeys(flags.many("alias"), "")
    if session.config.remote(source_remote).protocol == "simplestreams":
        if flags.on("copy-aliases"):
            raise UsageError("The aliases of an image server cannot be copied: specify them with --alias")
        fingerprint = _pull(session, sources.image(session, arguments[0], target), target, flags)
    else:
        source = session.server(source_remote)
        image = source.get(path_to("images", sources.fingerprint(source, source_name)))
        fingerprint = str(image["fingerprint"])
        if mode == _PULL:
            by_alias = flags.on("auto-update") and not fingerprint.startswith(source_name)
            wanted = _remote_image(session, source_remote, source_name if by_alias else "", image)
            fingerprint = _pull(session, wanted, target, flags)
        elif mode == _PUSH:
            _push(session, source, image, remote, target, flags)
        else:
            _stream(session, source, image, target, public=flags.on("public"))
            _set(target, fingerprint, flags)
        if flags.on("copy-aliases"):
            aliases |= {str(alias["name"]): alias["description"] for alias in image["aliases"] or ()}
    _name(target, fingerprint, aliases)
    session.say("Image copied successfully!")


def _pull(session: Session, source: dict[str, Any], target: Server, flags: Flags) -> str:
    """Have the target server fetch the image from its source; return its fingerprint."""
    body: dict[str, Any] = {
        "source": source | {"type": "image", "mode": _PULL},
        "public": flags.on("public"),
        "auto_update": flags.on("auto-update"),
    }
    if flags.many("profile"):
        body["profiles"] = flags.many("profile")
    record = session.wait(target, target.post("/1.0/images", body), "Copying the image")
    return str(record["metadata"]["fingerprint"])


def _remote_image(session: Session, remote: str, alias: str, image: dict[str, Any]) -> dict[str, Any]:
    """Return the source of an image on a server that another one can reach; a private one has a secret.

    A public one that is to be kept up to date is known by its alias.
    """
    server = session.server(remote)
    fingerprint = str(image["fingerprint"])
    address, certificate = sources.reachable(session, remote)
    source = {"server": address, "protocol": "lxd", "certificate": certificate, "project": server.project}
    if image["public"]:
        return source | ({"alias": alias} if alias else {"fingerprint": fingerprint})
    operation = server.post(path_to("images", fingerprint, "secret"), {})
    return source | {"fingerprint": fingerprint, "secret": operation["metadata"]["secret"]}


def _push(
    session: Session, source: Server, image: dict[str, Any], remote: str, target: Server, flags: Flags
) -> None:
    """Have the source server send the image to the target."""
    fingerprint = str(image["fingerprint"])
    address, certificate = sources.reachable(session, remote)
    body = {
        "source": {"type": "image", "mode": _PUSH, "fingerprint": fingerprint},
        "properties": image["properties"],
        "expires_at": image["expires_at"],
        "public": flags.on("public"),
        "profiles": flags.many("profile"),
    }
    token = target.post("/1.0/images", body)
    try:
        request = {
            "target": address,
            "certificate": certificate,
            "secret": token["metadata"]["secret"],
            "project": target.project,
        }
        sent = source.post(path_to("images", fingerprint, "export"), request)
        session.wait(source, sent, "Copying the image")
    except BaseException:
        _revoke(target, str(token["id"]))
        raise


def _revoke(server: Server, token: str) -> None:
    try:
        server.delete(path_to("operations", token))
    except ApiError:  # it has been used
        pass


def relay(session: Session, remote: str, name: str, target_remote: str, *, public: bool) -> None:
    """Stream an image from a server to another one."""
    source, target = session.server(remote), session.server(target_remote)
    image = source.get(path_to("images", sources.fingerprint(source, name)))
    _stream(session, source, image, target, public=public)


def _stream(session: Session, source: Server, image: dict[str, Any], target: Server, *, public: bool) -> None:
    """Send an image to a server, unless it has it already."""
    fingerprint = str(image["fingerprint"])
    if not image_files.exists(target, fingerprint):
        reply = source.checked(source.raw("GET", path_to("images", fingerprint, "export")))
        total = int(reply.headers.get("content-length", 0))
        chunks = progress.counted(reply.stream(), total, "Copying the image", show=session.shows_progress)
        sent = target.raw("POST", "/1.0/images", chunks, _headers(image, reply.headers, public=public))
        record = session.wait(target, target.metadata(sent), "Unpacking the image")
        if record["metadata"]["fingerprint"] != fingerprint:
            raise CommandFailed(
                f"The copy does not have the fingerprint {fingerprint}: delete it and try again"
            )


def _headers(image: dict[str, Any], sent: dict[str, str], *, public: bool) -> dict[str, str]:
    """Return the headers of the upload, from the image and the headers of its download."""
    kind = sent.get("content-type", "application/octet-stream")
    headers = {
        "Content-Type": kind,
        "X-LXD-fingerprint": str(image["fingerprint"]),
        "X-LXD-public": "true" if public else "false",
    }
    if not kind.startswith("multipart/"):
        headers["X-LXD-filename"] = str(image["filename"])
    if image["properties"]:
        fields = (f"{quote(key)}={quote(value)}" for key, value in image["properties"].items())
        headers["X-LXD-properties"] = "&".join(fields)
    return headers


def _set(target: Server, fingerprint: str, flags: Flags) -> None:
    """Apply settings that an upload cannot specify, or that an existing image should get."""
    changes: dict[str, Any] = {"auto_update": True} if flags.on("auto-update") else {}
    if flags.on("public"):
        changes["public"] = True
    if flags.many("profile"):
        changes["profiles"] = flags.many("profile")
    if changes:
        target.patch(path_to("images", fingerprint), changes)


def _name(target: Server, fingerprint: str, aliases: Aliases) -> None:
    if aliases:
        from utsuwa.cli.commands.image_alias import ensure

        for alias, description in aliases.items():
            ensure(target, alias, fingerprint, description)


def _refresh(session: Session, arguments: list[str], _flags: Flags) -> None:
    for text in arguments:
        server, name = session.target(text)
        if not name:
            raise UsageError("Specify the image to refresh")
        url = path_to("images", sources.fingerprint(server, name), "refresh")
        record = session.wait(server, server.post(url, {}), "Refreshing the image")
        is_new = (record.get("metadata") or {}).get("refreshed")
        session.say("Image refreshed successfully!" if is_new else "Image already up to date.")


COPY = Command(
    "copy",
    "Copy images between servers",
    _copy,
    args="[<remote>:]<image> <remote>:",
    flags=(
        Flag("alias", "New aliases to add to the image", kind=MANY),
        Flag("auto-update", "Keep the image up to date after initial copy"),
        Flag("copy-aliases", "Copy aliases from source"),
        Flag("mode", f"Transfer mode ({', '.join(_MODES)})", kind=TEXT, default=_PULL, complete=_MODES),
        Flag("profile", "Profile to apply to the new image", "p", kind=MANY),
        Flag("public", "Make image public"),
        Flag("target-project", "Copy to a project different from the source", kind=TEXT, complete="projects"),
    ),
    aliases=("cp",),
    details="""\
In mode pull, the target server fetches the image from the source, in mode push, the source sends it. In mode
relay, the client downloads it and uploads it again: it only needs to reach both. Auto-updates need a public
image that is specified by an alias.""",
    complete=("images", "remotes"),
    example=(
        "utsuwa image copy debian/12 far: --copy-aliases",
        "Copy the image and its aliases to another server; existing aliases are moved to it.",
    ),
)
REFRESH = Command(
    "refresh",
    "Refresh images",
    _refresh,
    args="[<remote>:]<image> [[<remote>:]<image>...]",
    complete=("images",),
    example=("utsuwa image refresh debian/12", "Fetch a newer version from the image's source."),
)
