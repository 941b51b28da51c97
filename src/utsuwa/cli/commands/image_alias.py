"""`utsuwa image alias`."""

from __future__ import annotations

from utsuwa.cli import sources
from utsuwa.cli.output.render import show_list
from utsuwa.cli.parsing.command import Command, format_flag
from utsuwa.cli.parsing.flags import TEXT, Flag
from utsuwa.client.server import path_to

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session
    from utsuwa.client.server import Server


def _list(session: Session, arguments: list[str], flags: Flags) -> None:
    server, filters = session.takes_remote(arguments)
    found = server.get("/1.0/images/aliases", recursion="1")
    show_list(
        session,
        flags.text("format"),
        [
            ("ALIAS", lambda a: a["name"]),
            ("FINGERPRINT", lambda a: a["target"][:12]),
            ("TYPE", lambda a: a["type"].upper()),
            ("DESCRIPTION", lambda a: a["description"]),
        ],
        [a for a in found if all(text in a["name"] or a["target"].startswith(text) for text in filters)],
        "alias",
    )


def _create(session: Session, arguments: list[str], flags: Flags) -> None:
    server, name = session.target(arguments[0])
    target = server.get(path_to("images", sources.fingerprint(server, arguments[1])))["fingerprint"]
    description = flags.text("description")
    server.post("/1.0/images/aliases", {"name": name, "target": target, "description": description})


def _delete(session: Session, arguments: list[str], _flags: Flags) -> None:
    server, name = session.target(arguments[0])
    server.delete(path_to("images", "aliases", name))


def _rename(session: Session, arguments: list[str], _flags: Flags) -> None:
    server, name = session.target(arguments[0])
    server.post(path_to("images", "aliases", name), {"name": arguments[1]})


def ensure(server: Server, name: str, fingerprint: str, description: str = "") -> None:
    """Create an alias for an image, or change its target; an empty description is left as it is."""
    wanted = {"target": fingerprint} | ({"description": description} if description else {})
    known = {alias["name"] for alias in server.get("/1.0/images/aliases", recursion="1")}
    if name in known:
        server.patch(path_to("images", "aliases", name), wanted)
    else:
        server.post("/1.0/images/aliases", {"name": name, **wanted})


def targets(server: Server, aliases: list[str]) -> set[str]:
    """Return the fingerprints of the images that have one of these aliases."""
    known = server.get("/1.0/images/aliases", recursion="1")
    return {str(alias["target"]) for alias in known if alias["name"] in aliases}


def name_image(
    session: Session, server: Server, fingerprint: str, aliases: list[str], replaced: set[str]
) -> None:
    """Give the aliases to a new image, and delete those that it replaces."""
    for alias in aliases:
        ensure(server, alias, fingerprint)
    for old in sorted(replaced - {fingerprint}):
        session.settle(server, server.delete(path_to("images", old)), "Deleting the replaced image")


COMMAND = Command(
    "alias",
    "Manage image aliases",
    children=(
        Command(
            "create",
            "Create aliases for existing images",
            _create,
            args="[<remote>:]<alias> <image>",
            flags=(Flag("description", "Image alias description", kind=TEXT),),
            complete=((), "images"),
            example=("utsuwa image alias create deb 5ae1c5b4c7d8", "Create the alias `deb`."),
        ),
        Command(
            "delete",
            "Delete image aliases",
            _delete,
            args="[<remote>:]<alias>",
            aliases=("rm",),
            complete=("images",),
            example=("utsuwa image alias delete deb", "Delete the alias, but not the image."),
        ),
        Command(
            "list",
            "List image aliases",
            _list,
            args="[<remote>:] [<filter>...]",
            flags=(format_flag(),),
            aliases=("ls",),
            example=("utsuwa image alias list deb", "List the aliases that contain deb."),
        ),
        Command(
            "rename",
            "Rename aliases",
            _rename,
            args="[<remote>:]<alias> <new-name>",
            aliases=("mv",),
            complete=("images", ()),
            example=("utsuwa image alias rename deb debian", "Use another name for the alias."),
        ),
    ),
)
