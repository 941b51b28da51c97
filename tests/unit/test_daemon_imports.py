"""What the daemon loads at its start: each of these costs every daemon memory and time."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Needed for an upgrade of the database, for the first HTTPS connection or certificate, for a database on
# PostgreSQL, by nothing.
LATER = (
    *("alembic", "mako", "cryptography", "OpenSSL", "sqlalchemy.dialects.postgresql", "psycopg"),
    *("sqlalchemy.orm", "sqlalchemy.ext.asyncio"),
)


@pytest.mark.processes
def test_rarely_needed_modules_are_not_loaded() -> None:
    code = "import sys, utsuwa.daemon.process; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert "utsuwa.daemon.app" in loaded
    assert loaded.isdisjoint(LATER)
