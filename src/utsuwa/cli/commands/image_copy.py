"""`utsuwa image copy` and `utsuwa image refresh`."""

from __future__ import annotations

from utsuwa.cli import sources
from utsuwa.cli.errors import CommandFailed, UsageError
from utsuwa.cli.output import progress
from utsuwa.cli.parsing.command import Command
from utsuwa.cli.parsing.flags import MANY, TEXT, Flag
from utsuwa.client.errors import ApiError
from utsuwa.client.server import connect, path_to, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session
    from utsuwa.client.server import Server

_MODES = ("pull", "relay")


def _copy(session: Session, arguments: list[str], flags: Flags) -> None:
    remote, name = session.config.split(arguments[1])
    if name:
        raise UsageError("The image keeps its fingerprint: specify a remote only, such as far:")
    if flags.text("mode") not in _MODES:
        raise UsageError(f"Unknown mode {flags.text('mode')!r}: use one of {', '.join(_MODES)}")
    # On a separate connection: one server sends while the other receives.
    trace = session.warn if session.debug else None
    target = connect(session.config, remote, project=session.project, trace=trace)
    source_remote, source_name = session.config.split(arguments[0])
    if not source_name:
        raise UsageError("Specify the image to copy")
    if flags.text("mode") == "pull" or session.config.remote(source_remote).protocol == "simplestreams":
        fingerprint, aliases = _pull(session, arguments[0], target, flags), flags.many("alias")
    else:
        fingerprint, known = _relay(session, source_remote, source_name, target, flags)
        aliases = [*flags.many("alias"), *(known if flags.on("copy-aliases") else [])]
    _name(target, fingerprint, aliases)
    session.say("Image copied successfully!")


def _pull(session: Session, text: str, target: Server, flags: Flags) -> str:
    """Have the target server fetch the image from its source."""
    if flags.on("copy-aliases"):
        raise UsageError("--copy-aliases requires --mode relay: specify the aliases with --alias")
    source = sources.image(session, text, target) | {"type": "image", "mode": "pull"}
    body = {"source": source, "public": flags.on("public"), "auto_update": flags.on("auto-update")}
    if flags.many("profile"):
        body["profiles"] = flags.many("profile")
    record = session.wait(target, target.post("/1.0/images", body), "Copying the image")
    return str(record["metadata"]["fingerprint"])


def _relay(session: Session, remote: str, name: str, target: Server, flags: Flags) -> tuple[str, list[str]]:
    """Stream the image from the source to the target; return its fingerprint and aliases."""
    source = session.server(remote)
    image = source.get(path_to("images", sources.fingerprint(source, name)))
    fingerprint = str(image["fingerprint"])
    if not _has(target, fingerprint):
        reply = source.checked(source.raw("GET", path_to("images", fingerprint, "export")))
        total = int(reply.headers.get("content-length", 0))
        chunks = progress.counted(reply.stream(), total, "Copying the image", show=session.shows_progress)
        sent = target.raw("POST", "/1.0/images", chunks, _headers(image, reply.headers, flags))
        record = session.wait(target, target.metadata(sent), "Unpacking the image")
        if record["metadata"]["fingerprint"] != fingerprint:
            raise CommandFailed(
                f"The copy does not have the fingerprint {fingerprint}: delete it and try again"
            )
    _set(target, fingerprint, flags)
    return fingerprint, [str(alias["name"]) for alias in image["aliases"] or ()]


def _has(server: Server, fingerprint: str) -> bool:
    try:
        server.get(path_to("images", fingerprint))
    except ApiError as error:
        if error.code != 404:
            raise
        return False
    return True


def _headers(image: dict[str, Any], sent: dict[str, str], flags: Flags) -> dict[str, str]:
    """Return the headers of the upload, from the image and the headers of its download."""
    kind = sent.get("content-type", "application/octet-stream")
    headers = {
        "Content-Type": kind,
        "X-LXD-fingerprint": str(image["fingerprint"]),
        "X-LXD-public": "true" if flags.on("public") else "false",
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


def _name(target: Server, fingerprint: str, aliases: list[str]) -> None:
    if aliases:
        from utsuwa.cli.commands.image_alias import ensure

        for alias in aliases:
            ensure(target, alias, fingerprint)


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
        Flag("mode", f"Transfer mode ({', '.join(_MODES)})", kind=TEXT, default="relay", complete=_MODES),
        Flag("profile", "Profile to apply to the new image", "p", kind=MANY),
        Flag("public", "Make image public"),
    ),
    aliases=("cp",),
    details="""\
In mode relay, the client downloads from one server and uploads to the other, so it only needs to reach
both. In mode pull, the target server fetches the image itself.""",
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
