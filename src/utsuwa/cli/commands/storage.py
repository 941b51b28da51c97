"""`utsuwa storage`."""

from __future__ import annotations

from utsuwa.cli.commands import objects
from utsuwa.cli.output import values
from utsuwa.cli.output.render import show_list, show_yaml
from utsuwa.cli.parsing.command import Command, Entry, format_flag
from utsuwa.cli.parsing.flags import BOOL, Flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session

_NOUN = objects.Noun(
    "storage pool",
    "storage-pools",
    kind="pool",
    fields=("config", "description"),
    members="pools",
    argument="pool",
)


def _list(session: Session, arguments: list[str], flags: Flags) -> None:
    server, _ = session.takes_remote(arguments)
    show_list(
        session,
        flags.text("format"),
        [
            ("NAME", lambda p: p["name"]),
            ("DRIVER", lambda p: p["driver"]),
            ("SOURCE", lambda p: p["config"].get("source", "")),
            ("DESCRIPTION", lambda p: p["description"]),
            ("USED BY", lambda p: str(len(p["used_by"] or ()))),
            ("STATE", lambda p: p["status"].upper()),
        ],
        server.get("/1.0/storage-pools", recursion="1"),
        "pool",
    )


def _create(session: Session, arguments: list[str], _flags: Flags) -> None:
    server, name = session.target(arguments[0])
    config = values.pairs(arguments[2:])
    server.post("/1.0/storage-pools", {"name": name, "driver": arguments[1], "config": config})
    session.say(f"Storage pool {name} created")


def _show(session: Session, arguments: list[str], flags: Flags) -> None:
    server, name = session.target(arguments[0])
    if flags.on("resources"):
        show_yaml(session, server.get(f"{_NOUN.url(name)}/resources"), "")
        return
    pool = server.get(_NOUN.url(name))
    pool["used_by"] = sorted(pool["used_by"] or ())
    show_yaml(session, pool, "pool")


def _info(session: Session, arguments: list[str], flags: Flags) -> None:
    from utsuwa.cli.output import yaml_out

    server, name = session.target(arguments[0])
    pool, resources = server.get(_NOUN.url(name)), server.get(f"{_NOUN.url(name)}/resources")
    space = resources["space"]

    def shown(count: int) -> str:
        return str(count) if flags.on("bytes") else values.size(count)

    info = {
        "description": pool["description"],
        "driver": pool["driver"],
        "name": pool["name"],
        "space used": shown(space["used"]),
        "total space": shown(space["total"]),
    }
    session.write(yaml_out.dump({"info": info, "used by": _users(pool["used_by"] or ())}))


def _users(urls: Any) -> dict[str, list[str]]:
    """Return the users of a pool by type: `{"instances": ["web", "web/snap0"]}`."""
    found: dict[str, list[str]] = {}
    for url in sorted(urls):
        kind, _, name = url.partition("?")[0].removeprefix("/1.0/").partition("/")
        if kind == "storage-pools":  # of a custom volume: POOL/volumes/custom/NAME
            kind, name = "volumes", name.split("/", 3)[3]
        with_owner = kind in ("instances", "volumes")
        short = name.replace("/snapshots/", "/") if with_owner else name.rpartition("/")[2]
        found.setdefault(kind, []).append(short)
    return dict(sorted(found.items()))


COMMAND = Command(
    "storage",
    "Manage storage pools and volumes",
    children=(
        Command(
            "create",
            "Create storage pools",
            _create,
            args="[<remote>:]<pool> <driver> [<key>=<value>...]",
            complete=((), "storage-drivers", ()),
            example=("utsuwa storage create fast overlay source=/mnt/ssd", "Create a pool there."),
        ),
        objects.delete(_NOUN),
        objects.edit(_NOUN),
        objects.get(_NOUN),
        Command(
            "info",
            "Show useful information about storage pools",
            _info,
            args="[<remote>:]<pool>",
            flags=(Flag("bytes", "Show the used and free space in bytes", kind=BOOL),),
            complete=("pools",),
            example=("utsuwa storage info default", "Show the space, and what uses the pool."),
        ),
        Command(
            "list",
            "List available storage pools",
            _list,
            args="[<remote>:]",
            flags=(format_flag(),),
            aliases=("ls",),
            example=("utsuwa storage list", "List all pools."),
        ),
        objects.set_(_NOUN),
        Command(
            "show",
            "Show storage pool configurations and resources",
            _show,
            args="[<remote>:]<pool>",
            flags=(Flag("resources", "Show the resources available to the storage pool"),),
            complete=("pools",),
            example=("utsuwa storage show default --resources", "Show space and inodes of the pool."),
        ),
        objects.unset(_NOUN),
        Entry("volume", "storage_volume", "Manage storage volumes"),
    ),
)
