"""`/internal`: for the host's root, the daemon's subcommands and tests; not part of the public API."""

from __future__ import annotations

import gc
from typing import Any

from utsuwa.api.http import Empty, Request, Result, Route, Sync
from utsuwa.core.errors import InvalidRequest, Unavailable
from utsuwa.core.tasks import finish
from utsuwa.db import sql
from utsuwa.security.authorization import Access
from utsuwa.wire.sql import SqlBatch, SqlDump, SqlQuery, SqlResult
from utsuwa.wire.warnings import TestWarning

_DATABASES = ("global", "local")
"""LXD has two databases; here they are the same."""


async def ready(request: Request) -> Result:
    daemon = request.services.daemon
    if not daemon.ready:
        raise Unavailable("The daemon is starting up or shutting down")
    if not daemon.autostarted and not request.flag("api-only"):
        raise Unavailable("Instances are still being autostarted")
    return Empty()


async def shutdown(request: Request) -> Result:
    """Stop the containers, then the daemon; replies immediately, the socket is closed at the end."""
    timeout = request.number("timeout", -1)
    request.services.daemon.request_shutdown(
        force=request.flag("force"), timeout=None if timeout < 0 else float(timeout)
    )
    return Empty()


async def collect_garbage(request: Request) -> Result:
    gc.collect()
    return Empty()


async def make_warning(request: Request) -> Result:
    await request.services.warnings.make(await request.body(TestWarning))
    return Empty()


async def query_database(request: Request) -> Result:
    """Run all statements of the query in one transaction."""
    body = await request.body(SqlQuery)
    _check_database(body.database)
    outcomes = await finish(sql.execute(request.services.database, body.query))
    return Sync(SqlBatch(results=[_result(outcome) for outcome in outcomes]))


async def dump_database(request: Request) -> Result:
    _check_database(request.query.get("database", "global"))
    text = await sql.dump(request.services.database, schema_only=request.flag("schema"))
    return Sync(SqlDump(text=text))


def _check_database(name: str) -> None:
    if name not in _DATABASES:
        raise InvalidRequest(f"Unknown database {name[:40]!r}: use one of {', '.join(_DATABASES)}")


def _result(outcome: sql.Outcome) -> SqlResult:
    if outcome.columns is None:
        return SqlResult(type="exec", rows_affected=outcome.affected)
    rows = [[_cell(value) for value in row] for row in outcome.rows]
    return SqlResult(type="select", columns=list(outcome.columns), rows=rows)


def _cell(value: Any) -> str | int | float | None:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


ROUTES: tuple[Route, ...] = (
    Route("GET", "/internal/ready", ready, "Whether start-up has finished, with the autostart of instances"),
    Route("PUT", "/internal/shutdown", shutdown, "Stop containers and daemon", access=Access.ROOT),
    Route(
        "POST",
        "/internal/testing/warnings",
        make_warning,
        "Make a warning",
        body=TestWarning,
        access=Access.ROOT,
    ),
    Route("GET", "/internal/sql", dump_database, "Show the database as SQL", SqlDump, access=Access.ROOT),
    Route(
        "POST",
        "/internal/sql",
        query_database,
        "Run SQL on the database",
        SqlBatch,
        SqlQuery,
        access=Access.ROOT,
    ),
    Route("GET", "/internal/gc", collect_garbage, "Free what is no longer used", access=Access.ROOT),
)
