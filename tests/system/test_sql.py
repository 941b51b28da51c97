"""`utsuwad sql` at a running daemon."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.daemon import Daemon

pytestmark = pytest.mark.root


def sql(daemon: Daemon, *arguments: str, input: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "utsuwa.daemon.main", "sql", *arguments],
        env={**os.environ, "UTSUWA_DIR": str(daemon.dir)},
        input=input,
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_rows_changes_and_texts(bare_daemon: Daemon) -> None:
    shown = sql(bare_daemon, "global", "SELECT id, name FROM profiles")
    assert shown.stdout.splitlines()[1:4] == ["| id |  name   |", "+----+---------+", "| 1  | default |"]
    changed = sql(bare_daemon, "local", "-", input="UPDATE profiles SET description = 'by hand'")
    assert changed.stdout == "Rows affected: 1\n"
    assert bare_daemon.get("/1.0/profiles/default")["description"] == "by hand"
    assert "CREATE TABLE profiles" in sql(bare_daemon, "local", ".schema").stdout
    assert "'by hand'" in sql(bare_daemon, "global", ".dump").stdout


def test_an_invalid_query_is_reported(bare_daemon: Daemon) -> None:
    ended = sql(bare_daemon, "global", "SELECT * FROM nope")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "utsuwad: The query failed: no such table: nope\n"
    assert sql(bare_daemon, "global", " ").stderr == "utsuwad: The query is empty\n"
    assert sql(bare_daemon, "other", "SELECT 1").returncode == 2
    other = {"database": "other", "query": "SELECT 1"}
    assert bare_daemon.api("POST", "/internal/sql", other).status == 400


def test_root_alone_may_ask(bare_daemon: Daemon) -> None:
    """Not even who may use the socket otherwise: the database holds secrets."""
    query = (
        "import http.client, os, socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
        "s.sendall(b'GET /internal/sql HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n')\n"
        "print(s.recv(100).split()[1].decode())\n"
    )
    bare_daemon.socket.chmod(0o666)
    ended = subprocess.run(
        [
            "setpriv",
            "--reuid",
            "65534",
            "--clear-groups",
            "/usr/bin/python3",
            "-c",
            query,
            str(bare_daemon.socket),
        ],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert ended.stdout == "403\n", ended.stderr
