"""`utsuwa image export-tree`: an image server's directory, for any web server."""

from __future__ import annotations

from utsuwa.cli import image_files, sources
from utsuwa.cli.errors import CommandFailed, UsageError
from utsuwa.cli.parsing.command import Command
from utsuwa.cli.parsing.flags import NUMBER, TEXT, Flag
from utsuwa.client.image_tree import ImageTree
from utsuwa.client.server import path_to
from utsuwa.core.errors import UtsuwaError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session


def _run(session: Session, arguments: list[str], flags: Flags) -> None:
    keep = flags.number("keep")
    if keep < 1:
        raise UsageError("--keep is 1 or more")
    folder, *names = arguments
    try:
        tree = ImageTree(folder, keep=keep, key=flags.text("sign"))
        for text in names:
            server, name = session.target(text)
            url = path_to("images", sources.fingerprint(server, name))
            image = server.get(url)
            parts = image_files.download(session, server, image["fingerprint"], f"Exporting {name}")
            product = tree.add(image, (data for _, data in parts))
            session.say(f"Image {image['fingerprint'][:12]} is the newest version of {product}")
        tree.save()
    except UtsuwaError as error:
        raise CommandFailed(error.message) from error


COMMAND = Command(
    "export-tree",
    "Write images as the tree of an image server",
    _run,
    args="<directory> [<remote>:]<image> [[<remote>:]<image>...]",
    flags=(
        Flag("keep", "Number of versions of each image that remain", kind=NUMBER, default="2"),
        Flag("sign", "Key of GnuPG with which the index is signed", kind=TEXT),
    ),
    complete=((), "images"),
    example=(
        "utsuwa image export-tree /srv/images debian/12 --sign=images@example.net",
        "Add the image to the tree; a web server serves the directory over HTTPS.",
    ),
    details="""\
LXD, Incus and Utsuwa use the tree as a remote of the protocol simplestreams. Images are distinguished by
their properties os, release and variant and their architecture; one with the same is a new version,
and its aliases replace those of the previous one. Run it again after changes.""",
)
