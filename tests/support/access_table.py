"""The table of who may use which route, `tests/access.txt`: as the routes declare it, and as text.

    python -m tests.support.access_table > tests/access.txt

writes it anew; the difference to the former version is what reviewers look at.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from aiohttp.test_utils import make_mocked_request

from utsuwa.api.http import Request, Route
from utsuwa.api.routes import served
from utsuwa.core.entitlements import Entity
from utsuwa.core.errors import Forbidden
from utsuwa.security.authorization import (
    Caller,
    authorize,
    require,
    scope_of,
    tls_caller,
    unix_caller,
)

FILE = Path(__file__).parents[1] / "access.txt"
OWN, OTHER = "own", "other"
_WIDTH = 84
"""Of the column of paths, fixed so that a new route changes one line."""
YES, NO, SECRET = "yes", "-", "secret"
COLUMNS = ("stranger", "metrics", "other", "own", "full", "root")
WITH_SECRET = frozenset(
    (
        "POST /1.0/certificates",
        "POST /1.0/images",
        "GET /1.0/operations/{id}/wait",
        "GET /1.0/operations/{id}/websocket",
    )
)
"""Public routes that require a secret of callers who are not trusted."""
_HEAD = """\
Who may use which route of the API. Compared with the declarations of the routes and with a running daemon;
written by `python -m tests.support.access_table`. /1.0/containers is the same as /1.0/instances.

  stranger  anyone over HTTPS without a certificate, or with one that is unknown, expired, not yet valid
  metrics   a certificate of the type metrics
  other     a certificate restricted to the project `own`, for objects of the project `other`
  own       the same for objects of its own project
  full      a certificate without restrictions, a member of the socket's group
  root      the host's root on the unix socket

  yes       the request is handled: what it shows and changes is limited to what the caller may see
  secret    handled with the trust password or a token, or the secret of the operation
  -         refused: 403 not authorized, before anything is read or revealed
"""

_PARAMETERS: Mapping[str, str] = {
    "type": "custom",
    "fingerprint": "ab" * 32,
    "id": "00000000-0000-0000-0000-000000000000",
    "uuid": "00000000-0000-0000-0000-000000000000",
}
_HELD = tls_caller(fingerprint="h", address="", trusted=True, projects=frozenset({OWN}))
_CALLERS: Mapping[str, tuple[Caller, str]] = {
    "stranger": (tls_caller(fingerprint="", address="", trusted=False), OWN),
    "metrics": (Caller(trusted=False, projects=frozenset(), metrics=True), OWN),
    "other": (_HELD, OTHER),
    "own": (_HELD, OWN),
    "full": (tls_caller(fingerprint="f", address="", trusted=True), OWN),
    "root": (unix_caller(0, "root"), OWN),
}


@dataclass(frozen=True)
class Row:
    """`cells` are `YES`, `NO` or `SECRET`, one a column."""

    method: str
    path: str
    cells: tuple[str, ...]

    @property
    def route(self) -> str:
        return f"{self.method} {self.path}"


def routes() -> list[Route]:
    return sorted(
        (r for r in served() if not r.containers_api), key=lambda r: (r.path.replace("{", "~"), r.method)
    )


def parameters(route: Route, project: str) -> dict[str, str]:
    """Return values for the path: the project's name where it is one, otherwise objects that do not exist."""
    names = [part[1:-1].removesuffix(":path") for part in route.path.split("/") if part.startswith("{")]
    found = {name: _PARAMETERS.get(name, "nothing") for name in names}
    if route.concerns is Entity.PROJECT and "name" in found:
        found["name"] = project
    return found


def url(route: Route, project: str) -> str:
    path = route.path.replace(":path}", "}").format(**parameters(route, project))
    return f"{path}?project={project}"


def declared() -> list[Row]:
    """Return the table as the routes declare it."""
    return [
        Row(route.method, route.path, tuple(_cell(route, *_CALLERS[column]) for column in COLUMNS))
        for route in routes()
    ]


def _cell(route: Route, caller: Caller, project: str) -> str:
    raw = make_mocked_request(route.method, url(route, project))
    scope = scope_of(caller)
    request = Request(raw, cast(Any, None), route, parameters(route, project), caller, scope)
    try:
        authorize(caller, route.access)
        if scope.restricted and route.access.is_judged(caller):
            require(scope, route.concerns, route.needs, request.object_project)
        elif scope.restricted and caller.trusted:
            # What such a route requires of trusted callers is up to its handler.
            require(scope, route.concerns, route.needs, None)
    except Forbidden:
        return NO
    return SECRET if not caller.trusted and f"{route.method} {route.path}" in WITH_SECRET else YES


def text(rows: list[Row]) -> str:
    """Return the table as it is stored."""
    lines = [f"{'':7} {'':{_WIDTH}}  " + "  ".join(COLUMNS)]
    for row in rows:
        cells = "  ".join(f"{cell:{len(c)}}" for c, cell in zip(COLUMNS, row.cells, strict=True))
        lines.append(f"{row.method:7} {row.path:{_WIDTH}}  {cells}".rstrip())
    return _HEAD + "\n" + "\n".join(lines) + "\n"


def stored() -> list[Row]:
    """Read the table of the file."""
    found = []
    for line in FILE.read_text().splitlines():
        words = line.split()
        if len(words) == len(COLUMNS) + 2 and words[1].startswith("/"):
            found.append(Row(words[0], words[1], tuple(words[2:])))
    return found


if __name__ == "__main__":
    sys.stdout.write(text(declared()))
