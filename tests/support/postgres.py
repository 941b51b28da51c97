"""A PostgreSQL server for tests: Debian's program, with a separate directory and unix socket."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.parse import quote, urlsplit

import psycopg

from tests.support.guards import allow_processes

_USER = "postgres"
_START_SECONDS = 30
_ICU = ("--locale-provider=icu", "--icu-locale=en-US")
"""A server whose own order of text is not that of bytes, as most are."""


def _programs() -> Path:
    """Return the directory of the newest version, which is not in Debian's PATH."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parent.parent.name)
    )
    assert found, "PostgreSQL is not installed: scripts/test installs it"
    return found[-1].parent


class PostgresServer:
    """A database cluster without durability. It refuses to run as root, so it runs as a separate user."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ut-pg-", dir="/var/tmp"))
        self._process: subprocess.Popen[bytes] | None = None
        self._as_user: tuple[str, ...] = ()
        if os.geteuid() == 0:
            account = pwd.getpwnam(_USER)
            os.chown(self.folder, account.pw_uid, account.pw_gid)
            self._as_user = ("setpriv", f"--reuid={_USER}", f"--regid={_USER}", "--clear-groups", "--")
        self._databases = 0
        try:
            self._initialize()
            self.start()
        except BaseException:
            shutil.rmtree(self.folder)
            raise

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _initialize(self) -> None:
        options = ("-U", _USER, "-E", "UTF8", "--no-sync", "--locale=C.UTF-8", *_ICU)
        with allow_processes():
            done = subprocess.run(
                [*self._as_user, str(_programs() / "initdb"), "-D", str(self._data), *options],
                cwd="/",
                capture_output=True,
                text=True,
                check=False,
            )
        assert done.returncode == 0, f"initdb ended with {done.returncode}:\n{done.stdout}{done.stderr}"

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log, allow_processes():
            self._process = subprocess.Popen(
                [
                    *self._as_user,
                    *(str(_programs() / "postgres"), "-D", str(self._data), "-k", str(self.folder), "-h", ""),
                    *("-c", "fsync=off", "-c", "max_connections=200", "-c", "log_min_messages=fatal"),
                ],
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                psycopg.connect(self._server("postgres")).close()
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def stop(self) -> None:
        """Stop it in the mode `fast`, which closes connections."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(_START_SECONDS)
            self._process = None

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)

    def new_database(self, template: str | None = None, options: str = "") -> str:
        """Create a database, empty or as a copy of that with the URL `template`, and return its URL."""
        self._databases += 1
        name = f"utsuwa{self._databases}"
        if template is not None:
            options = f"TEMPLATE {urlsplit(template).path.lstrip('/')}"
        self.execute(f"CREATE DATABASE {name} {options}")
        return f"postgresql://{_USER}@/{name}?host={quote(str(self.folder), safe='')}"

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        with psycopg.connect(self._server(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def _server(self, database: str) -> str:
        return f"host={self.folder} user={_USER} dbname={database}"
