"""`utsuwa image import` and `utsuwa image export`."""

from __future__ import annotations

import os

from utsuwa.cli import image_files, sources
from utsuwa.cli.errors import CommandFailed, UsageError
from utsuwa.cli.parsing.command import Command
from utsuwa.cli.parsing.flags import MANY, Flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session
    from utsuwa.client.server import Server


def _import(session: Session, arguments: list[str], flags: Flags) -> None:
    files, remote, properties = _sort(session, arguments)
    server = session.server(remote)
    if files[0].startswith("http://"):
        raise UsageError("Only https:// is supported for remote image import")
    if files[0].startswith("https://"):
        operation = _by_url(server, files[0], properties, flags)
    elif os.path.isdir(files[0]):
        operation = _upload_folder(session, server, files, properties, flags)
    else:
        operation = image_files.upload(session, server, files, properties, public=flags.on("public"))
    record = session.wait(server, operation, "Importing the image")
    fingerprint = str(record["metadata"]["fingerprint"])
    session.say(f"Image imported with fingerprint: {fingerprint}")
    if flags.many("alias"):
        from utsuwa.cli.commands.image_alias import ensure

        for name in flags.many("alias"):
            ensure(server, name, fingerprint)


def _sort(session: Session, arguments: list[str]) -> tuple[list[str], str, dict[str, str]]:
    """Return one or two files, the remote, and properties. Raises UsageError."""
    files: list[str] = []
    properties: dict[str, str] = {}
    remote = ""
    for text in arguments:
        key, equals, value = text.partition("=")
        if text.endswith(":") and text[:-1] in session.config.remotes:
            remote = text[:-1]
        elif equals and files and not os.path.exists(text):
            properties[key] = value
        else:
            files.append(text)
    if not 1 <= len(files) <= 2:
        raise UsageError("An image consists of one file, or a metadata file and a root file system")
    return files, remote, properties


def _by_url(server: Server, url: str, properties: dict[str, str], flags: Flags) -> dict[str, Any]:
    source = {"type": "url", "mode": "pull", "protocol": "direct", "url": url}
    body = {"source": source, "properties": properties, "public": flags.on("public")}
    found: dict[str, Any] = server.post("/1.0/images", body)
    return found


def _upload_folder(
    session: Session, server: Server, files: list[str], properties: dict[str, str], flags: Flags
) -> dict[str, Any]:
    """Upload a directory with metadata.yaml, rootfs/ and perhaps templates/. Raises CommandFailed."""
    import tempfile

    folder = files[0]
    if len(files) > 1:
        raise UsageError(f"{folder} is a directory, which is a complete image: specify no second file")
    if os.geteuid():
        raise CommandFailed("Must run as root to import from directory")
    for name in ("metadata.yaml", "rootfs"):
        if not os.path.lexists(os.path.join(folder, name)):
            raise CommandFailed(f"{folder} contains no {name}: an image needs metadata.yaml and rootfs/")
    names = [name for name in _CONTENT if os.path.lexists(os.path.join(folder, name))]
    with tempfile.TemporaryDirectory(prefix="utsuwa-") as place:
        archive = os.path.join(place, f"{os.path.basename(os.path.abspath(folder))}.tar.xz")
        command = ["tar", *_PACK, f"--file={archive}", f"--directory={folder}", *names]
        if os.spawnvp(os.P_WAIT, "tar", command):
            raise CommandFailed(f"{folder} cannot be packed with tar and xz")
        return image_files.upload(session, server, [archive], properties, public=flags.on("public"))


_CONTENT = ("metadata.yaml", "rootfs", "templates")
_PACK = (
    "--create", "--use-compress-program=xz -T0", "--format=posix", "--numeric-owner", "--sparse",
    "--sort=name", "--xattrs", "--xattrs-include=user.*", "--xattrs-include=security.capability",
    "--xattrs-include=system.posix_acl_*",
)  # fmt: skip


def _export(session: Session, arguments: list[str], _flags: Flags) -> None:
    server, name = session.target(arguments[0])
    target = arguments[1] if len(arguments) > 1 else "."
    fingerprint = sources.fingerprint(server, name)
    parts = image_files.download(session, server, fingerprint, "Exporting the image")
    written = [_write_part(target, place, filename, data) for place, (filename, data) in enumerate(parts)]
    if not written:
        raise CommandFailed("The server sent no file")
    session.say("Image exported successfully!")


def _write_part(target: str, place: int, filename: str, data: Iterator[bytes]) -> str:
    """Write one file of an image, under its own name in a directory, or as `target` and `target.root`."""
    safe = os.path.basename(filename)
    if os.path.isdir(target):
        path = os.path.join(target, safe if safe not in ("", ".", "..") else f"image.{place}")
    else:
        path = target if place == 0 else f"{target}.root"
    try:
        with open(path, "wb") as file:
            for chunk in data:
                file.write(chunk)
    except OSError as error:
        raise CommandFailed(f"Cannot write {path}: {error.strerror}") from error
    return path


IMPORT = Command(
    "import",
    "Import image into the image store",
    _import,
    args="<file>|<directory>|<URL> [<rootfs file>] [<remote>:] [<key>=<value>...]",
    flags=(
        Flag("alias", "New aliases to add to the image", kind=MANY),
        Flag("public", "Make image public"),
    ),
    example=(
        "utsuwa image import metadata.tar.xz rootfs.squashfs --alias debian/12",
        "Upload a split image; an existing alias is moved to it.",
    ),
)
EXPORT = Command(
    "export",
    "Export and download images",
    _export,
    args="[<remote>:]<image> [<target>]",
    complete=("images", ()),
    example=("utsuwa image export debian/12 backups/", "Write the image's files to a directory."),
)
