"""`utsuwa image build`: an image from a definition."""

from __future__ import annotations

import platform

from utsuwa.cli.errors import CommandFailed, UsageError
from utsuwa.cli.parsing.command import Command
from utsuwa.cli.parsing.flags import MANY, TEXT, Flag
from utsuwa.client.server import path_to

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session
    from utsuwa.client.server import Server


def _run(session: Session, arguments: list[str], flags: Flags) -> None:
    from utsuwa.cli.building import build

    path, remote, properties = _sort(session, arguments)
    output = flags.text("output")
    if output and (flags.many("alias") or flags.on("public") or flags.on("reuse")):
        raise UsageError("--output writes files: --alias, --public and --reuse are for images of a server")
    image = build.prepare(path, properties)
    server = session.server(remote)
    _check_architecture(server)
    with build.interruptible(), build.built(session, server, image, flags.text("storage")) as files:
        if output:
            build.save(files, output)
            session.say(f"Image written to {output}")
        else:
            _add(session, server, files, flags)


def _sort(session: Session, arguments: list[str]) -> tuple[str, str, dict[str, str]]:
    """Return the file, the remote, and properties. Raises UsageError."""
    path, *rest = arguments
    remote = ""
    if rest and rest[0].endswith(":") and "=" not in rest[0]:
        remote, _ = session.config.split(rest.pop(0))
    properties = {}
    for text in rest:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"Bad key=value pair: {text}")
        properties[key] = value
    return path, remote, properties


def _check_architecture(server: Server) -> None:
    """Raise CommandFailed if the server's host has another architecture than this one."""
    theirs = (server.get("/1.0").get("environment") or {}).get("kernel_architecture", "")
    if theirs and theirs != platform.machine():
        raise CommandFailed(
            f"The server's host is {theirs}, and this one is {platform.machine()}: "
            "packages for this host's architecture cannot be installed there"
        )


def _add(session: Session, server: Server, files: tuple[str, str], flags: Flags) -> None:
    """Import the image, unless the server has the same already, and give it its aliases."""
    from utsuwa.cli import image_files
    from utsuwa.cli.commands.image_alias import name_image, targets

    aliases = flags.many("alias")
    fingerprint = _fingerprint(files)
    replaced = targets(server, aliases) if flags.on("reuse") else set()
    if not image_files.exists(server, fingerprint):
        operation = image_files.upload(session, server, files, {}, public=flags.on("public"))
        session.wait(server, operation, "Importing the image")
    elif flags.on("public"):
        server.patch(path_to("images", fingerprint), {"public": True})
    name_image(session, server, fingerprint, aliases, replaced)
    session.say(f"Image built with fingerprint: {fingerprint}")


def _fingerprint(files: tuple[str, str]) -> str:
    import hashlib

    whole = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                whole.update(chunk)
    return whole.hexdigest()


_CHUNK = 1024 * 1024

COMMAND = Command(
    "build",
    "Build images from definitions",
    _run,
    args="<file> [<remote>:] [<key>=<value>...]",
    flags=(
        Flag("alias", "New alias to define at target", kind=MANY),
        Flag("output", "Write the image's files to a directory instead of importing them", kind=TEXT),
        Flag("public", "Make the image public"),
        Flag("reuse", "If an alias is already in use, delete the image that has it"),
        Flag("storage", "Storage pool for the container that installs", "s", kind=TEXT, complete="pools"),
    ),
    details="""\
The file is YAML that names a distribution (debian or ubuntu), its release, packages, files, commands and
templates. This host's apt downloads the packages and verifies their signatures; a container without a
network on the server's host installs them. Equal definitions and packages result in equal images. An alias
in use moves to the new image. Properties that are given replace those of the definition.""",
    example=(
        "utsuwa image build web.yaml --alias web serial=7",
        "Build an image and import it under the name web.",
    ),
    complete=((), "remotes"),
)
