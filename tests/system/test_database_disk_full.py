"""A file system that fills up below the database: told, nothing half-stored, and usable again afterwards."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from utsuwa.core.errors import OutOfSpace
from utsuwa.db import config
from utsuwa.db.database import Database
from utsuwa.db.sqlite import Sqlite

pytestmark = pytest.mark.root


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "none", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def _fill(path: Path) -> None:
    """Write until nothing more goes."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 4096):
            continue
    left = os.statvfs(path)
    assert left.f_bavail == 0


async def _values(database: Database) -> dict[str, str]:
    return await database.read("test", config.load)


async def _store(database: Database, values: dict[str, str]) -> None:
    await database.write("test", config.replace, values)


async def test_a_full_file_system(small: Path) -> None:
    database = await Database.open(Sqlite(small / "utsuwa.db"))
    try:
        await _store(database, {"user.a": "1"})
        ballast = small / "ballast"
        _fill(ballast)
        for _ in range(3):
            with pytest.raises(OutOfSpace, match="free some space"):
                await _store(database, {"user.a": "2", "user.big": "x" * 50_000})
            assert await _values(database) == {"user.a": "1"}
        with pytest.raises(OutOfSpace, match="free some space"):
            await database.begin("test", config.replace, {})
        assert await _values(database) == {"user.a": "1"}
        ballast.unlink()
        await _store(database, {"user.a": "3"})
        assert await _values(database) == {"user.a": "3"}
    finally:
        await database.close()


async def test_no_space_for_a_first_database(small: Path) -> None:
    ballast = small / "ballast"
    _fill(ballast)
    with pytest.raises(OutOfSpace, match="No space left"):
        await Database.open(Sqlite(small / "utsuwa.db"))
    ballast.unlink()
    await (await Database.open(Sqlite(small / "utsuwa.db"))).close()
