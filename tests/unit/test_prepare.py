"""A state folder is made ready by a program of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from utsuwa.core.paths import StatePaths
from utsuwa.daemon.prepare import prepare
from utsuwa.db import upgrade


@pytest.fixture
def paths(tmp_path: Path) -> StatePaths:
    return StatePaths(tmp_path)


@pytest.mark.processes
async def test_a_new_folder_gets_database_and_key_pair(paths: StatePaths) -> None:
    await prepare(paths)
    assert not upgrade.is_needed(paths.database)
    made = paths.server_cert.read_bytes()
    await prepare(paths)
    assert paths.server_cert.read_bytes() == made


async def test_nothing_is_started_for_a_folder_that_is_ready(paths: StatePaths) -> None:
    """Programs are refused in this test."""
    upgrade.upgrade(paths.database)
    paths.server_cert.write_text("there")
    await prepare(paths)


@pytest.mark.processes
async def test_a_failure_is_left_to_whoever_opens_it(
    paths: StatePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    await prepare(paths)
    assert not paths.server_cert.exists()
