"""Choice of id maps: which host ids a container uses, from root's ranges in /etc/subuid and /etc/subgid.

An unprivileged instance gets root's complete range; an isolated one gets a part that no other isolated
instance has; `raw.idmap` replaces single ids in either. All choices are pure functions of the configuration
and of the ranges in use; only `read_host_ids` accesses the host.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from utsuwa.core.config_keys import parse_bool
from utsuwa.core.errors import HostError, InvalidConfig
from utsuwa.core.idmap import IdMap, IdRange

USEFUL = 65536
"""Minimum size of a container's range; smaller ranges of root only permit the ids in raw.idmap."""
MAX_ID = 2**32 - 2
"""4294967295 means "no id" in the kernel."""
MAX_RANGES = 340
"""Maximum number of lines that the kernel accepts in a uid_map."""

NESTING = 16 * USEFUL
"""Number of ids of an isolated container that may contain containers, isolated ones included."""


@dataclass(frozen=True, order=True)
class HostRange:
    """`count` ids of the host, starting at `start`."""

    start: int
    count: int

    @property
    def end(self) -> int:
        """The first id after the range."""
        return self.start + self.count

    def overlaps(self, other: HostRange) -> bool:
        return self.start < other.end and other.start < self.end


@dataclass(frozen=True)
class HostIds:
    """The ids that root may map: disjoint ranges, sorted."""

    uids: tuple[HostRange, ...]
    gids: tuple[HostRange, ...]

    def default_uids(self) -> HostRange:
        return _largest(self.uids, "/etc/subuid")

    def default_gids(self) -> HostRange:
        return _largest(self.gids, "/etc/subgid")


@dataclass(frozen=True)
class Choice:
    """An instance's id map; `base` is stored in `volatile.idmap.base` (0: not isolated)."""

    idmap: IdMap
    base: int


def read_host_ids(etc: Path = Path("/etc"), proc: Path = Path("/proc/self")) -> HostIds:
    """Return root's ranges, without ids that are not mapped in this user namespace.

    A missing file counts as empty: choosing an unprivileged map then raises HostError with advice.
    """
    uids = parse_subids(_read(etc / "subuid"))
    gids = parse_subids(_read(etc / "subgid"))
    return HostIds(
        uids=_intersect(uids, parse_kernel_map(_read(proc / "uid_map"))),
        gids=_intersect(gids, parse_kernel_map(_read(proc / "gid_map"))),
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def suggested(proc: Path = Path("/proc/self")) -> str:
    """Return a line for /etc/subuid and /etc/subgid with all ids that root may give to containers here."""
    usual = HostRange(1_000_000, 1_000_000_000)
    here = [parse_kernel_map(_read(proc / name)) for name in ("uid_map", "gid_map")]
    for space in (usual, HostRange(USEFUL, MAX_ID)):  # a container may have few ids
        found = max(_intersect((space,), _intersect(*here)), key=attrgetter("count"), default=None)
        if found is not None and found.count >= USEFUL:
            return f"root:{found.start}:{found.count}"
    return f"root:{usual.start}:{usual.count}"


def parse_subids(text: str) -> tuple[HostRange, ...]:
    """Return root's entries (`root:START:COUNT`, also by uid 0) of a subuid or subgid file, merged.

    Lines of other users and invalid lines are ignored, as shadow does.
    """
    found = []
    for line in text.splitlines():
        owner, _, rest = line.strip().partition(":")
        match = re.fullmatch(r"([0-9]{1,10}):([0-9]{1,10})", rest)
        if owner in ("root", "0") and match:
            start, count = int(match[1]), int(match[2])
            if count and start + count - 1 <= MAX_ID:
                found.append(HostRange(start, count))
    return _merge(found)


def parse_kernel_map(text: str) -> tuple[HostRange, ...]:
    """Return the ids that are mapped in a namespace, from its uid_map or gid_map."""
    fields = [line.split() for line in text.splitlines()]
    return _merge(HostRange(int(f[0]), int(f[2])) for f in fields if len(f) == 3)


def _merge(ranges: Iterable[HostRange]) -> tuple[HostRange, ...]:
    merged: list[HostRange] = []
    for r in sorted(ranges):
        if merged and r.start <= merged[-1].end:
            end = max(merged[-1].end, r.end)
            merged[-1] = HostRange(merged[-1].start, end - merged[-1].start)
        else:
            merged.append(r)
    return tuple(merged)


def _intersect(left: tuple[HostRange, ...], right: tuple[HostRange, ...]) -> tuple[HostRange, ...]:
    both = []
    for a in left:
        for b in right:
            start, end = max(a.start, b.start), min(a.end, b.end)
            if start < end:
                both.append(HostRange(start, end - start))
    return tuple(sorted(both))


def _largest(ranges: tuple[HostRange, ...], file: str) -> HostRange:
    best = max(ranges, key=lambda r: r.count, default=None)
    if best is None or best.count < USEFUL:
        raise HostError(
            f"Root has no range of {USEFUL} ids or more in {file}: add the line {suggested()} to /etc/subuid "
            "and to /etc/subgid, then restart the daemon"
        )
    return best


def choose(
    config: Mapping[str, str], host: HostIds, taken: Iterable[HostRange] = (), *, provisional: bool = False
) -> Choice:
    """Choose the map of an instance with the expanded config `config`.

    `taken` are the ranges that other instances use exclusively (see `held_ranges`). A `provisional` map lacks
    the ids of `raw.idmap` that root may not map (see `lacks_raw`). Raises InvalidConfig for invalid values,
    HostError if the host has not enough ids.
    """
    if parse_bool(config.get("security.privileged", "")):
        return Choice(IdMap(), 0)
    raw_uids, raw_gids = parse_raw(config.get("raw.idmap", ""))
    if provisional:
        raw_uids = [entry for entry in raw_uids if _is_allowed(entry, host.uids)]
        raw_gids = [entry for entry in raw_gids if _is_allowed(entry, host.gids)]
    base = 0
    if parse_bool(config.get("security.idmap.isolated", "")):
        part = _isolated(config, host, taken)
        base = part.start
        uids = gids = part
    else:
        uids, gids = host.default_uids(), host.default_gids()
    idmap = IdMap(
        uids=_punch(IdRange(0, uids.start, uids.count), raw_uids, host.uids, "uid", "/etc/subuid"),
        gids=_punch(IdRange(0, gids.start, gids.count), raw_gids, host.gids, "gid", "/etc/subgid"),
    )
    return Choice(idmap, base)


def _isolated(config: Mapping[str, str], host: HostIds, taken: Iterable[HostRange]) -> HostRange:
    nesting = parse_bool(config.get("security.nesting", ""))
    size = _number(config, "security.idmap.size", NESTING if nesting else USEFUL)
    if size == 0:
        raise InvalidConfig("Invalid value '0' for 'security.idmap.size': must be 1 or more")
    uids, gids = host.default_uids(), host.default_gids()
    start, end = max(uids.start, gids.start), min(uids.end, gids.end)
    if config.get("security.idmap.base", "") not in ("", "auto"):
        part = HostRange(_number(config, "security.idmap.base", 0), size)
        if part.start < start or part.end > end:
            raise InvalidConfig(
                f"Invalid value {part.start} for 'security.idmap.base': the {size} ids from there are not "
                f"within root's ids {start} to {end - 1}"
            )
        return part
    found = first_gap(HostRange(start + USEFUL, max(0, end - start - USEFUL)), size, taken)
    if found is None:
        raise InvalidConfig(
            f"Not enough host ids for an isolated id map of {size}: choose a smaller 'security.idmap.size' "
            "or give root a larger range in /etc/subuid and /etc/subgid"
        )
    return found


def first_gap(space: HostRange, size: int, taken: Iterable[HostRange]) -> HostRange | None:
    """Return the lowest `size` ids of `space` that do not overlap with `taken`."""
    start = space.start
    for r in sorted(taken, key=attrgetter("start")):
        if r.start >= start + size:
            break
        start = max(start, r.end)
    return HostRange(start, size) if start + size <= space.end else None


def _number(config: Mapping[str, str], key: str, default: int) -> int:
    value = config.get(key, "")
    if value in ("", "auto"):
        return default
    if not re.fullmatch(r"[0-9]{1,10}", value) or int(value) > MAX_ID:
        raise InvalidConfig(f"Invalid value {value[:40]!r} for {key!r}: must be a whole number of ids")
    return int(value)


def permitted(idmap: IdMap, host: HostIds) -> bool:
    """Return whether root may map all of these ids. The files may have changed since the map was chosen."""
    return all(
        _is_allowed(r, whole)
        for ranges, whole in ((idmap.uids, host.uids), (idmap.gids, host.gids))
        for r in ranges
    )


def lacks_raw(config: Mapping[str, str], idmap: IdMap) -> bool:
    """Return whether a map was chosen provisionally: without some ids of the config's `raw.idmap`."""
    if idmap.privileged:
        return False
    raw_uids, raw_gids = parse_raw(config.get("raw.idmap", ""))
    return not (set(raw_uids) <= set(idmap.uids) and set(raw_gids) <= set(idmap.gids))


_OWN = HostRange(0, 1)
"""Root's own id, which newuidmap and newgidmap let root map without a line in /etc/subuid or /etc/subgid."""


def _is_allowed(entry: IdRange, allowed: Iterable[HostRange]) -> bool:
    if HostRange(entry.host, entry.count) == _OWN:
        return True
    return any(r.start <= entry.host and entry.host + entry.count <= r.end for r in allowed)


Held = Callable[[str, str, str], frozenset[HostRange]]
"""Returns the ids that an instance holds, from its `volatile.idmap.next`, `.current` and last power state."""


@lru_cache(maxsize=2)
def held_on(host: HostIds) -> Held:
    """Return `held_ranges` for a host, cached: a choice asks for the maps of all instances."""
    return lru_cache(maxsize=4096)(partial(held_ranges, host))


def held_ranges(host: HostIds, next_map: str, current_map: str, power: str) -> frozenset[HostRange]:
    """Return the host ids that an instance uses exclusively, by its current and its next map.

    Root's default map is shared, so it is not included; ids of `raw.idmap` are. A map that root may no longer
    use is included only if the instance is running with it: its next start chooses another one.
    """
    held: set[HostRange] = set()
    # Both are usually the same map.
    for text, in_use in {next_map: False, current_map: power == "RUNNING"}.items():
        idmap = from_json(text)
        if not in_use and not permitted(idmap, host):
            continue
        for ranges, whole in ((idmap.uids, host.uids), (idmap.gids, host.gids)):
            shared = max(whole, key=lambda r: r.count, default=HostRange(0, 0)).start
            held.update(HostRange(r.host, r.count) for r in ranges if r.host - r.container != shared)
    return frozenset(held)


_RAW_LINE = re.compile(
    r"(both|uid|gid)\s+([0-9]{1,10})(?:-([0-9]{1,10}))?\s+([0-9]{1,10})(?:-([0-9]{1,10}))?"
)


def parse_raw(text: str) -> tuple[list[IdRange], list[IdRange]]:
    """Parse the users and groups of `raw.idmap`: lines `uid|gid|both HOST[-HOST] CONTAINER[-CONTAINER]`.

    Raises InvalidConfig if a line is invalid or an id is mapped twice.
    """
    uids: list[IdRange] = []
    gids: list[IdRange] = []
    for line in text.splitlines():
        if not line.strip():
            continue
        kind, entry = _parse_raw_line(line.strip())
        if kind in ("uid", "both"):
            uids.append(entry)
        if kind in ("gid", "both"):
            gids.append(entry)
    if max(len(uids), len(gids)) > MAX_RANGES:
        raise _too_many()
    for entries, kind in ((uids, "uid"), (gids, "gid")):
        _refuse_doubles(entries, kind)
    return uids, gids


def _too_many() -> InvalidConfig:
    return InvalidConfig(f"'raw.idmap' results in more than {MAX_RANGES} ranges, the kernel's maximum")


def _parse_raw_line(line: str) -> tuple[str, IdRange]:
    match = _RAW_LINE.fullmatch(line)
    if not match:
        raise InvalidConfig(f"Invalid line {line[:60]!r} in 'raw.idmap': use for example 'both 1000 1000'")
    kind, host, host_last, container, container_last = match.groups()
    count = int(host_last or host) - int(host) + 1
    if count != int(container_last or container) - int(container) + 1:
        raise InvalidConfig(f"Invalid line {line[:60]!r} in 'raw.idmap': the two ranges differ in length")
    if count < 1 or int(host) + count - 1 > MAX_ID or int(container) + count - 1 > MAX_ID:
        raise InvalidConfig(f"Invalid line {line[:60]!r} in 'raw.idmap': no ids in this range")
    return kind, IdRange(int(container), int(host), count)


def _refuse_doubles(entries: list[IdRange], kind: str) -> None:
    inside = [HostRange(e.container, e.count) for e in entries]
    outside = [HostRange(e.host, e.count) for e in entries]
    for ranges, where in ((inside, "the container"), (outside, "the host")):
        ordered = sorted(ranges)
        for left, right in zip(ordered, ordered[1:], strict=False):
            if left.overlaps(right):
                raise InvalidConfig(f"'raw.idmap' maps {kind} {right.start} of {where} twice")


def _punch(
    whole: IdRange, raw: list[IdRange], allowed: tuple[HostRange, ...], kind: str, file: str
) -> tuple[IdRange, ...]:
    """Return `whole` with the container ids of `raw` mapped as in `raw`."""
    for entry in raw:
        if not _is_allowed(entry, allowed):
            raise InvalidConfig(
                f"'raw.idmap' maps the host's {kind} {entry.host}, which root may not map: "
                f"add the line root:{entry.host}:{entry.count} to {file}"
            )
    rest = [whole]
    for entry in raw:
        rest = [piece for r in rest for piece in _without(r, entry.container, entry.count)]
    for entry in raw:
        for r in rest:
            if HostRange(entry.host, entry.count).overlaps(HostRange(r.host, r.count)):
                raise InvalidConfig(
                    f"'raw.idmap' maps the host's {kind} {entry.host}, which the container already uses: "
                    "choose another id"
                )
    if len(rest) + len(raw) > MAX_RANGES:
        raise _too_many()
    return tuple(sorted((*rest, *raw), key=lambda r: r.container))


def _without(r: IdRange, container: int, count: int) -> Iterable[IdRange]:
    """Return the remaining parts of `r` without the container ids starting at `container`."""
    if container >= r.container + r.count or container + count <= r.container:
        yield r
        return
    if container > r.container:
        yield IdRange(r.container, r.host, container - r.container)
    behind = container + count
    if behind < r.container + r.count:
        yield IdRange(behind, r.host + behind - r.container, r.container + r.count - behind)


def to_json(idmap: IdMap) -> str:
    """Format a map for `volatile.idmap.*` and `volatile.last_state.idmap`; privileged is `[]`."""
    entries = [_entry(r, user=True) for r in idmap.uids] + [_entry(r, user=False) for r in idmap.gids]
    return json.dumps(entries, separators=(",", ":"))


def _entry(r: IdRange, *, user: bool) -> dict[str, bool | int]:
    return {"Isuid": user, "Isgid": not user, "Hostid": r.host, "Nsid": r.container, "Maprange": r.count}


@lru_cache(maxsize=4096)
def from_json(text: str) -> IdMap:
    """Parse the map of a volatile key (cached); the empty string and `[]` are privileged.

    Raises InvalidConfig if it is not a map.
    """
    if not text:
        return IdMap()
    try:
        entries = json.loads(text) or []
        uids = tuple(_from_entry(e) for e in entries if e["Isuid"])
        gids = tuple(_from_entry(e) for e in entries if e["Isgid"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InvalidConfig(f"Invalid id map {text[:60]!r}") from None
    if bool(uids) != bool(gids):
        raise InvalidConfig(f"Invalid id map {text[:60]!r}: it maps only one of users and groups")
    return IdMap(uids, gids)


def _from_entry(entry: Mapping[str, Any]) -> IdRange:
    values = (entry["Nsid"], entry["Hostid"], entry["Maprange"])
    if any(type(value) is not int or not 0 <= value <= MAX_ID + 1 for value in values):
        raise ValueError
    return IdRange(*values)
