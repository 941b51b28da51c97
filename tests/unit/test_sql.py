"""SQL by hand: parting statements, what is refused, one transaction, and the table that shows it."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import prepared
from utsuwa.core.errors import InvalidRequest
from utsuwa.daemon.sql import shown, table
from utsuwa.db.database import Database
from utsuwa.db.sql import MAX_QUERY, Outcome, dump, execute, split


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await Database.open(prepared.sqlite(tmp_path / "database" / "utsuwa.db"))
    yield opened
    await opened.close()


@pytest.mark.parametrize(
    ("query", "statements"),
    [
        ("SELECT 1", ["SELECT 1"]),
        (" SELECT 1 ; SELECT 2;; ", ["SELECT 1 ;", "SELECT 2;"]),
        ("SELECT ';'; SELECT \"a;b\"", ["SELECT ';';", 'SELECT "a;b"']),
        ("SELECT 1 -- not; here\n; SELECT 2", ["SELECT 1 -- not; here\n;", "SELECT 2"]),
        (
            "CREATE TRIGGER t AFTER DELETE ON x BEGIN DELETE FROM y; END; SELECT 1",
            ["CREATE TRIGGER t AFTER DELETE ON x BEGIN DELETE FROM y; END;", "SELECT 1"],
        ),
        ("SELECT 'open; SELECT 1", ["SELECT 'open; SELECT 1"]),
        ("SELECT 1 /* open; SELECT 2", ["SELECT 1 /* open; SELECT 2"]),
        ("", []),
        (" ; ;", []),
    ],
)
def test_statements_are_parted_where_sqlite_parts_them(query: str, statements: list[str]) -> None:
    assert split(query) == statements


@given(st.lists(st.sampled_from(["SELECT 1", "SELECT ';'", "SELECT 'a''b;'", "/* ; */ SELECT 2"])))
def test_joined_statements_are_split_again(statements: list[str]) -> None:
    assert split("; ".join(statements)) == [
        f"{s};" if n < len(statements) - 1 else s for n, s in enumerate(statements)
    ]


async def test_rows_and_changes(database: Database) -> None:
    found = await execute(
        database,
        "PRAGMA foreign_keys=ON; UPDATE profiles SET description = 'a:b %s ?';"
        "SELECT name, description, NULL AS empty, x'00ff' AS raw FROM profiles;"
        "DELETE FROM profiles WHERE id = 0",
    )
    assert found == [
        Outcome(None),
        Outcome(None, affected=1),
        Outcome(("name", "description", "empty", "raw"), (("default", "a:b %s ?", None, b"\x00\xff"),)),
        Outcome(None),
    ]
    assert (await execute(database, "SELECT 1 AS a WHERE 0"))[0] == Outcome(("a",))
    assert (await execute(database, "PRAGMA table_info(profiles)"))[0].rows


async def test_all_statements_or_none(database: Database) -> None:
    with pytest.raises(InvalidRequest, match="The query failed: no such table: nope"):
        await execute(database, "UPDATE profiles SET description = 'changed'; SELECT * FROM nope")
    assert (await execute(database, "SELECT description FROM profiles"))[0].rows != (("changed",),)


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("", "The query is empty"),
        (" ;; ", "The query is empty"),
        ("nonsense", "syntax error"),
        ("SELECT 1; COMMIT", "COMMIT cannot be used here"),
        ("/* x */ begin", "BEGIN cannot be used here"),
        ("-- x\nVACUUM", "VACUUM cannot be used here"),
        ("ATTACH '/etc/passwd' AS x", "ATTACH cannot be used here"),
        ("PRAGMA query_only = ON", "PRAGMA would change"),
        ("PRAGMA foreign_keys = OFF", "PRAGMA would change"),
        ("PRAGMA journal_mode(delete)", "PRAGMA would change"),
        ("INSERT INTO profiles SELECT * FROM profiles", "UNIQUE constraint failed"),
        ("SELECT '" + "x" * MAX_QUERY + "'", "longer than"),
    ],
)
async def test_invalid_queries_are_rejected(database: Database, query: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        await execute(database, query)
    assert (await execute(database, "SELECT 1"))[0].rows == ((1,),)


async def test_a_dump_makes_the_same_database(database: Database, tmp_path: Path) -> None:
    copy = sqlite3.connect(tmp_path / "copy")
    copy.executescript(await dump(database, schema_only=False))
    assert copy.execute("SELECT name FROM profiles").fetchall() == [("default",)]
    copy.close()
    schema = await dump(database, schema_only=True)
    assert "CREATE TABLE profiles" in schema
    assert "INSERT" not in schema


@pytest.mark.timeout(20)  # in quadratic time it takes minutes
@pytest.mark.parametrize(
    ("text", "statements"),
    [(";", 0), ("'", 1), ("/*", 1), ("CREATE TRIGGER x BEGIN " + ";" * 50_000, 1), ("';", 25_000)],
)
def test_long_texts_are_split_in_linear_time(text: str, statements: int) -> None:
    assert len(split(text * (100_000 // len(text)))) == statements


def test_the_table_is_lxds() -> None:
    assert table(["id", "name", "description"], [["1", "default", "Default LXD profile"]]) == (
        "+----+---------+---------------------+\n"
        "| id |  name   |     description     |\n"
        "+----+---------+---------------------+\n"
        "| 1  | default | Default LXD profile |\n"
        "+----+---------+---------------------+\n"
    )
    assert table(["id"], []) == "+----+\n| id |\n+----+\n+----+\n"


def test_several_results_are_numbered() -> None:
    changed = {"type": "exec", "columns": [], "rows": [], "rows_affected": 2}
    rows = {"type": "select", "columns": ["a"], "rows": [[None]], "rows_affected": 0}
    assert shown([changed]) == "Rows affected: 2\n"
    assert shown([changed, rows]) == (
        "=> Query 0:\n\nRows affected: 2\n\n"
        "=> Query 1:\n\n+-------+\n|   a   |\n+-------+\n| <nil> |\n+-------+\n\n"
    )
