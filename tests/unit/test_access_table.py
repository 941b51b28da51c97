"""`tests/access.txt`: what the routes declare about access, as a person reads it."""

from __future__ import annotations

from dataclasses import replace

from tests.support import access_table
from tests.support.access_table import COLUMNS, NO, SECRET, YES
from utsuwa.api.routes import not_served, served
from utsuwa.security.authorization import Access


def test_the_table_is_what_the_routes_declare() -> None:
    """If this fails, look at each changed row before you write the table anew."""
    written = access_table.text(access_table.declared())
    assert written == access_table.FILE.read_text(), (
        "tests/access.txt differs: `python -m tests.support.access_table > tests/access.txt` writes it"
    )
    assert access_table.stored() == access_table.declared()


def test_each_column_sees_what_the_one_before_sees() -> None:
    order = [COLUMNS.index(column) for column in ("stranger", "other", "own", "full", "root")]
    for row in access_table.stored():
        seen = [row.cells[index] != NO for index in order]
        assert seen == sorted(seen) or SECRET in row.cells, row
        assert row.cells[-1] == YES, row


def test_containers_are_instances_by_another_name() -> None:
    instances = {replace(r, path=r.path) for r in served() if r.path.startswith("/1.0/instances")}
    containers = {r for r in served() if r.containers_api}
    assert {r.for_containers() for r in instances} == containers


def test_what_is_not_served_is_for_trusted_callers() -> None:
    assert {route.access for route in not_served(served())} <= {Access.TRUSTED, Access.METRICS}
