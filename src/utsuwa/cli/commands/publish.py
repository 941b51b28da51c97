"""`utsuwa publish`: an image from an instance or a snapshot."""

from __future__ import annotations

from utsuwa.cli.commands.image_alias import name_image, targets
from utsuwa.cli.errors import CommandFailed, UsageError
from utsuwa.cli.parsing.command import Command
from utsuwa.cli.parsing.flags import MANY, TEXT, Flag
from utsuwa.client.server import path_to

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session
    from utsuwa.client.server import Server


def _run(session: Session, arguments: list[str], flags: Flags) -> None:
    remote, name = session.config.split(arguments[0])
    rest = arguments[1:]
    target_remote = session.config.default
    if rest and "=" not in rest[0]:
        target_remote, image_name = session.config.split(rest.pop(0))
        if image_name:
            raise UsageError('There is no "image name".  Did you want an alias?')
    if not name:
        raise UsageError("Instance name is mandatory")
    body = _request(name, rest, flags)
    server, target = session.server(remote), session.server(target_remote)
    body["public"] = server is target and flags.on("public")
    old = targets(target, flags.many("alias")) if flags.on("reuse") else set()
    with _Stopped(session, server, name, force=flags.on("force")):
        record = session.wait(server, server.post("/1.0/images", body), "Publishing instance")
    fingerprint = str(record["metadata"]["fingerprint"])
    if server is not target:
        _hand_over(session, remote, fingerprint, target_remote, flags)
    name_image(session, target, fingerprint, flags.many("alias"), old)
    session.say(f"Instance published with fingerprint: {fingerprint}")


def _request(name: str, properties: list[str], flags: Flags) -> dict[str, Any]:
    """Return the body of the request. Raises UsageError."""
    body: dict[str, Any] = {
        "source": {"type": "snapshot" if "/" in name else "instance", "name": name},
        "compression_algorithm": flags.text("compression"),
    }
    if properties:  # absent ones are those of the instance
        body["properties"] = dict(_pairs(properties))
    if flags.text("expire"):
        body["expires_at"] = flags.text("expire")
    return body


def _pairs(properties: list[str]) -> Iterator[tuple[str, str]]:
    for text in properties:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"Bad key=value pair: {text}")
        yield key, value


class _Stopped:
    """Has a running instance stopped for the block, and started again afterwards, if that is wanted."""

    def __init__(self, session: Session, server: Server, name: str, *, force: bool) -> None:
        self._session = session
        self._server = server
        self._url = path_to("instances", name)
        self._is_snapshot = "/" in name
        self._force = force
        self._started_again = False

    def __enter__(self) -> None:
        if self._is_snapshot:
            return
        instance, etag = self._server.get_with_etag(self._url)
        if instance["status"] == "Stopped":
            return
        if not self._force:
            raise CommandFailed(
                "The instance is currently running. Use --force to have it stopped and restarted"
            )
        if instance["ephemeral"]:  # otherwise it would be deleted when it stops
            self._put(instance | {"ephemeral": False}, etag)
        self._started_again = True
        self._change_state("stop")
        if instance["ephemeral"]:
            stopped, etag = self._server.get_with_etag(self._url)
            self._put(stopped | {"ephemeral": True}, etag)

    def __exit__(self, *_: object) -> None:
        if self._started_again:
            self._change_state("start")

    def _put(self, instance: dict[str, Any], etag: str) -> None:
        self._session.settle(self._server, self._server.put(self._url, instance, etag))

    def _change_state(self, action: str) -> None:
        body = {"action": action, "timeout": -1, "force": action == "stop", "stateful": False}
        self._session.settle(self._server, self._server.put(f"{self._url}/state", body))


def _hand_over(session: Session, remote: str, fingerprint: str, target: str, flags: Flags) -> None:
    """Copy the image to another server, and delete it from its own."""
    from utsuwa.cli.commands import image_copy

    server = session.server(remote)
    try:
        image_copy.relay(session, remote, fingerprint, target, public=flags.on("public"))
    finally:
        session.settle(server, server.delete(path_to("images", fingerprint)))


COMMAND = Command(
    "publish",
    "Publish instances as images",
    _run,
    args="[<remote>:]<instance>[/<snapshot>] [<remote>:] [<key>=<value>...]",
    flags=(
        Flag("alias", "New alias to define at target", kind=MANY),
        Flag("compression", "Compression algorithm to use (none for uncompressed)", kind=TEXT),
        Flag("expire", "Image expiration date (format: rfc3339)", kind=TEXT),
        Flag("force", "Stop the instance if it is running, and start it again afterwards", "f"),
        Flag("public", "Make the image public"),
        Flag("reuse", "If an alias is already in use, delete the image that has it"),
    ),
    details="""\
The image gets the properties of the instance's metadata, unless others are given. The compression is that of
images.compression_algorithm by default; others are bzip2, gzip, lz4, lzma, pigz, xz and zstd, with a level as
in "zstd -3", and squashfs. An alias in use moves to the new image.""",
    example=("utsuwa publish web --alias web-image", "Create an image from a stopped instance."),
    complete=("instances", "remotes"),
)
