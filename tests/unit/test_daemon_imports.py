"""What the daemon loads at its start: each of these costs every daemon memory and time."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Needed for an upgrade of the database, for the first HTTPS connection or certificate, by nothing.
LATER = ("alembic", "mako", "cryptography", "OpenSSL", "sqlalchemy.orm", "sqlalchemy.ext.asyncio")


@pytest.mark.processes
def test_what_few_daemons_need_is_not_loaded() -> None:
    code = "import sys, utsuwa.daemon.process; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert "utsuwa.daemon.app" in loaded
    assert loaded.isdisjoint(LATER)
