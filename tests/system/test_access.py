"""Every route of a running daemon, as each kind of caller, compared with `tests/access.txt`."""

from __future__ import annotations

import http.client
import socket
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support import access_table
from tests.support.access_table import COLUMNS, NO, OTHER, OWN, SECRET, YES
from tests.support.daemon import Daemon
from tests.support.tls import Identity, client_context, make_identity
from utsuwa.api.http import Route
from utsuwa.security.authorization import Access
from utsuwa.wire.codec import decode_object

pytestmark = pytest.mark.root

HARMLESS = {"Content-Type": "text/plain"}
"""No handler reads this as JSON, so that nothing is changed by the callers that may change it."""
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes

    @property
    def refused(self) -> bool:
        return self.status == 403 and (not self.body or decode_object(self.body)["error"] == "not authorized")


class Visitor:
    """One caller over HTTPS, on one connection."""

    def __init__(self, address: str, identity: Identity | None) -> None:
        self._connection = http.client.HTTPSConnection(address, timeout=20, context=client_context(identity))

    def visit(self, route: Route, project: str) -> Answer:
        """Request a route with a body that cannot be used."""
        with_secret = f"{route.method} {route.path}" in access_table.WITH_SECRET
        headers, body = ({}, b"{}") if with_secret else (HARMLESS, b"nothing")
        sends = route.method in ("POST", "PUT", "PATCH")
        self._connection.request(
            route.method, access_table.url(route, project), body if sends else None, headers if sends else {}
        )
        reply = self._connection.getresponse()
        return Answer(reply.status, reply.read())

    def close(self) -> None:
        self._connection.close()


def cell(route: Route, answer: Answer, column: str) -> str:
    if not answer.refused:
        return YES
    secret = f"{route.method} {route.path}" in access_table.WITH_SECRET
    return SECRET if secret and column in ("stranger", "metrics") else NO


def test_the_daemon_keeps_to_the_table(bare_daemon: Daemon, tmp_path: Path) -> None:
    daemon = bare_daemon
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    daemon.do("PATCH", "/1.0", {"config": {"core.https_address": address}})
    for project in (OWN, OTHER):
        body = {"name": project, "config": {"features.networks": "true"}}
        daemon.do("POST", "/1.0/projects", body)
        # A project with contents cannot be deleted.
        daemon.do("POST", f"/1.0/profiles?project={project}", {"name": "kept"})
    held, full, metrics = (make_identity(tmp_path, name) for name in ("held", "full", "metrics"))
    for identity, more in (
        (held, {"type": "client", "restricted": True, "projects": [OWN]}),
        (full, {"type": "client"}),
        (metrics, {"type": "metrics"}),
    ):
        daemon.do("POST", "/1.0/certificates", {**more, "certificate": identity.pem})
    identities = {"stranger": None, "metrics": metrics, "other": held, "own": held, "full": full}
    visitors = {name: Visitor(address, identity) for name, identity in identities.items()}
    strangers = [
        Visitor(address, make_identity(tmp_path, "unknown")),
        Visitor(address, make_identity(tmp_path, "old", starts=-2 * DAY, ends=-DAY)),
        Visitor(address, make_identity(tmp_path, "new", starts=DAY, ends=2 * DAY)),
    ]
    expected = {row.route: row.cells for row in access_table.stored()}
    differing = []
    for route in access_table.routes():
        cells = dict(zip(COLUMNS, expected[f"{route.method} {route.path}"], strict=True))
        for column, visitor in visitors.items():
            answer = visitor.visit(route, OTHER if column == "other" else OWN)
            assert answer.status < 500 or answer.status == 501, (route.method, route.path, column, answer)
            if cell(route, answer, column) != cells[column]:
                differing.append((route.method, route.path, column, cells[column], answer))
            if column == "stranger":
                assert [s.visit(route, OWN) for s in strangers] == [answer] * len(strangers)
    for visitor in (*visitors.values(), *strangers):
        visitor.close()
    assert differing == []
    assert daemon.get("/1.0")["config"]["core.https_address"] == address


def test_root_alone_is_let_into_the_internal_api(bare_daemon: Daemon) -> None:
    routes = [r for r in access_table.routes() if r.access is Access.ROOT]
    assert routes
    for route in routes:
        if route.path != "/internal/shutdown":
            reply = bare_daemon.api(route.method, route.path, headers=HARMLESS)
            assert reply.status != 403, route.path
