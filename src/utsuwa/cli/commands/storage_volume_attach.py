"""`utsuwa storage volume attach` and `detach`, for instances and profiles."""

from __future__ import annotations

from utsuwa.cli.commands import links
from utsuwa.cli.volumes import Place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from utsuwa.cli.commands.links import Device
    from utsuwa.cli.session import Session


def _device(session: Session, named: list[str], more: list[str]) -> tuple[str, Device]:
    place = Place(session, *named).only_custom("attached to instances")
    place.server.get(place.url)
    name = more[0] if len(more) == 2 else place.name
    path = more[-1] if more else ""
    return name, {"type": "disk", "pool": place.pool, "source": place.name, "path": path}


def _matches(session: Session, named: list[str]) -> Callable[[Device], bool]:
    place = Place(session, *named)
    wanted = ("disk", place.pool, place.name)
    return lambda device: tuple(device.get(key) for key in ("type", "pool", "source")) == wanted


ATTACH, DETACH, ATTACH_PROFILE, DETACH_PROFILE = links.commands(
    links.Linked(
        "storage volume",
        "[<remote>:]<pool> <volume>",
        attached="new storage volumes",
        type="disk",
        last="<path>",
        details="With one argument after these, that is the path.",
        complete=("pools", "volumes"),
        examples=(
            ("default data web /srv", "Show the volume at /srv inside."),
            ("default data web", "Remove the device with the volume."),
        ),
        device=_device,
        matches=_matches,
    ),
    "storage volume",
)
