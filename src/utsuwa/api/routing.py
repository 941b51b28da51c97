"""Lookup of routes by a tree of path segments, built once from the table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar
from urllib.parse import unquote_to_bytes

from utsuwa.core.errors import InvalidRequest, MethodNotAllowed, NotFound

TAIL = ":path"
"""`{name:path}` matches the rest of the path including slashes; only as the last segment."""


class Routed(Protocol):
    """What a route needs to be found."""

    @property
    def method(self) -> str: ...

    @property
    def path(self) -> str: ...


R = TypeVar("R", bound=Routed)


@dataclass
class _Node(Generic[R]):
    literals: dict[str, _Node[R]] = field(default_factory=dict)
    parameter: _Node[R] | None = None
    tail: _Node[R] | None = None
    routes: dict[str, tuple[R, tuple[str, ...]]] = field(default_factory=dict)
    """By method: the route and the names of its parameters, in order."""


class Router(Generic[R]):
    """The table as a tree. Literal segments take precedence over parameters, full paths over tails."""

    def __init__(self, routes: Iterable[R]) -> None:
        """Raises ValueError if two routes have the same method and path."""
        self._root: _Node[R] = _Node()
        for route in routes:
            self._add(route)

    def find(self, method: str, raw_path: str) -> tuple[R, dict[str, str]]:
        """Return the route and its decoded parameters. Raises NotFound or MethodNotAllowed."""
        found = self._walk(self._root, raw_path.split("/"), 1, ())
        if found is None:
            raise NotFound("not found")
        node, values = found
        entry = node.routes.get(method)
        if entry is None:
            allowed = ", ".join(sorted(node.routes))
            raise MethodNotAllowed(f"{method[:20]} is not possible here: use {allowed}")
        route, names = entry
        return route, {name: _decode(value) for name, value in zip(names, values, strict=True)}

    def _walk(
        self, node: _Node[R], segments: list[str], position: int, values: tuple[str, ...]
    ) -> tuple[_Node[R], tuple[str, ...]] | None:
        if position == len(segments):
            return (node, values) if node.routes else None
        segment = segments[position]
        literal = node.literals.get(segment)
        if literal is not None and (found := self._walk(literal, segments, position + 1, values)):
            return found
        if not segment:
            return None
        if node.parameter is not None and (
            found := self._walk(node.parameter, segments, position + 1, (*values, segment))
        ):
            return found
        if node.tail is not None:
            return node.tail, (*values, "/".join(segments[position:]))
        return None

    def _add(self, route: R) -> None:
        node = self._root
        names = []
        for segment in route.path.split("/")[1:]:
            if not segment.startswith("{"):
                node = node.literals.setdefault(segment, _Node())
                continue
            name = segment[1:-1]
            names.append(name.removesuffix(TAIL))
            if name.endswith(TAIL):
                node.tail = node.tail or _Node()
                node = node.tail
            else:
                node.parameter = node.parameter or _Node()
                node = node.parameter
        if route.method in node.routes:
            raise ValueError(f"two routes for {route.method} {route.path}")
        node.routes[route.method] = (route, tuple(names))


def _decode(segment: str) -> str:
    """Decode a percent-encoded segment. Raises InvalidRequest if it is not UTF-8."""
    if "%" not in segment:
        return segment
    try:
        return unquote_to_bytes(segment).decode()
    except UnicodeDecodeError:
        raise InvalidRequest("The path is not valid UTF-8") from None
