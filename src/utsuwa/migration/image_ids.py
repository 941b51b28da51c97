"""Images of a running state for another id map: the one that the container gets on this server.

CRIU keeps ids as they are inside, with two exceptions: the map itself, and the owners of cgroups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar, Union

from utsuwa.core import protobuf
from utsuwa.core.errors import InvalidRequest
from utsuwa.core.idmap import IdMap, IdRange
from utsuwa.core.protobuf import Field, InvalidMessage, Message
from utsuwa.host.checkpoint.image_format import messages, with_messages

_MAX_DEPTH = 100
"""Of cgroups inside of each other."""

_WITHOUT_OWNER = b"freezer.state"
"""A property of cgroups that CRIU adds itself: what stands for its mode and owner is uninitialized memory."""

_Rules = Mapping[int, Union["_Rules", "_Property", Callable[[int], int]]]
"""What is changed in a message, by the numbers of its fields: what they contain, or numbers."""


@dataclass(frozen=True)
class _Property:
    """What is changed in a property of a cgroup, whose name is its first field."""

    rules: _Rules

    def of(self, message: memoryview) -> _Rules:
        names = (value for number, _, value in protobuf.fields(message) if number == 1)
        return {} if any(name == memoryview(_WITHOUT_OWNER) for name in names) else self.rules


@dataclass
class _Extent(Message):
    first: int | None = None
    host: int | None = None
    count: int | None = None

    FIELDS: ClassVar = {1: Field("first", "int"), 2: Field("host", "int"), 3: Field("count", "int")}

    @classmethod
    def of(cls, r: IdRange) -> _Extent:
        return cls(r.container, r.host, r.count)


@dataclass
class _UserNamespace(Message):
    uids: list[_Extent] = field(default_factory=list)
    gids: list[_Extent] = field(default_factory=list)

    FIELDS: ClassVar = {1: Field("uids", _Extent, repeated=True), 2: Field("gids", _Extent, repeated=True)}


def change(folder: Path, before: IdMap, after: IdMap) -> None:
    """Change the images in a directory. Blocking.

    Raises InvalidRequest if they are damaged, or an id of the container has no counterpart.
    """
    described = _UserNamespace([*map(_Extent.of, after.uids)], [*map(_Extent.of, after.gids)]).encode()
    rules = _cgroup_rules(partial(_moved, before.uids, after.uids), partial(_moved, before.gids, after.gids))
    try:
        for path in folder.glob("userns-*.img"):
            path.write_bytes(with_messages(path.read_bytes(), [described]))
        for path in folder.glob("cgroup.img"):
            image = path.read_bytes()
            path.write_bytes(with_messages(image, [_changed(one, rules) for one in messages(image)]))
    except InvalidMessage as error:
        raise InvalidRequest(f"The running state that the other server sent is damaged: {error}") from error


def _cgroup_rules(user: Callable[[int], int], group: Callable[[int], int]) -> _Rules:
    """Return where the owners of cgroups are: in those of a controller, and of their files."""
    owner: _Rules = {2: user, 3: group}
    directory: dict[int, _Rules | _Property | Callable[[int], int]] = {3: _Property({3: owner}), 4: owner}
    directory[2] = directory
    return {2: {2: directory}}


def _moved(before: tuple[IdRange, ...], after: tuple[IdRange, ...], host: int) -> int:
    """Return the id on this host for one of the other host; those that are not the container's stay."""
    inside = next((r.container + host - r.host for r in before if r.host <= host < r.host + r.count), None)
    if inside is None:
        return host
    for r in after:
        if r.container <= inside < r.container + r.count:
            return r.host + inside - r.container
    raise InvalidRequest(
        f"The id {inside} is in use in the instance, and not among those that it has on this server: raise "
        "security.idmap.size, or use --stateless"
    )


def _changed(message: bytes, rules: _Rules, depth: int = 0) -> bytes:
    """Return a message with what the rules change; all else is kept. Raises InvalidMessage."""
    if depth > _MAX_DEPTH:
        raise InvalidMessage("it is nested too deeply")
    out = bytearray()
    for number, wire_type, value in protobuf.fields(memoryview(message)):
        rule = rules.get(number)
        if not isinstance(value, int):
            if isinstance(rule, _Property):
                rule = rule.of(value)
            part = bytes(value) if rule is None or callable(rule) else _changed(bytes(value), rule, depth + 1)
            out += protobuf.encoded(number, wire_type, part)
        else:
            out += protobuf.encoded(number, wire_type, rule(value) if callable(rule) else value)
    return bytes(out)
