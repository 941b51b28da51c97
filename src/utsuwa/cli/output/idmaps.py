"""The id maps of an instance, from its volatile keys."""

from __future__ import annotations

from utsuwa.client import lean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_CURRENT, _NEXT = "volatile.idmap.current", "volatile.idmap.next"


def describe(config: dict[str, str], *, running: bool) -> Iterator[str]:
    """Yield lines about the map in use, if the instance is running, and about that of the next start."""
    current = config.get(_CURRENT, "") if running else ""
    following = config.get(_NEXT, "")
    if not (current or following):
        return
    yield "Id map:"
    if current and current == following:
        yield from _map("In use and at the next start", current)
        return
    if current:
        yield from _map("In use", current)
    if following:
        yield from _map("At the next start", following)


def _map(title: str, text: str) -> Iterator[str]:
    try:
        entries = lean.loads(text) or []
        uids = [_range(entry) for entry in entries if entry["Isuid"]]
        gids = [_range(entry) for entry in entries if entry["Isgid"]]
    except (ValueError, KeyError, TypeError):
        yield f"  {title}: {text}"  # of a server that writes it in another form
        return
    if not entries:
        yield f"  {title}: none, root in the instance is root on the host"
        return
    yield f"  {title}:"
    for ids in sorted({*uids, *gids}):
        kind = "uids and gids" if ids in uids and ids in gids else "uids" if ids in uids else "gids"
        inside, outside, count = ids
        yield f"    {kind} {_shown(inside, count)} -> {_shown(outside, count)} on the host"


def _range(entry: dict[str, Any]) -> tuple[int, int, int]:
    """Return the first id inside, the first one on the host, and their number."""
    return int(entry["Nsid"]), int(entry["Hostid"]), int(entry["Maprange"])


def _shown(first: int, count: int) -> str:
    return str(first) if count == 1 else f"{first}-{first + count - 1}"
