"""Which socket a daemon takes for one that was made for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from utsuwa.daemon.handed_over import take_socket


@pytest.mark.parametrize(
    ("pid", "count"),
    [(1, "1"), (os.getpid(), "0"), (os.getpid(), ""), (os.getpid(), "many"), (os.getpid(), "-1")],
)
def test_what_is_for_another_process_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, pid: int, count: str
) -> None:
    """A program that systemd started may start a daemon in turn; programs of ours hear nothing of it."""
    monkeypatch.setenv("LISTEN_PID", str(pid))
    monkeypatch.setenv("LISTEN_FDS", count)
    monkeypatch.setenv("LISTEN_FDNAMES", "x")
    assert take_socket(Path("/nowhere/unix.socket")) is None
    assert not [name for name in os.environ if name.startswith("LISTEN_")]
